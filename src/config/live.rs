//! The snapshot in force, and its replacement. A request loads it once; a reload replaces it with one store, or not
//! at all.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::difference::difference;
use super::problem::{Problem, Report};
use super::reading::{Fingerprint, Reading};
use super::snapshot::Snapshot;
use super::{built_in, judge, process_env, settings, syntax};

/// What the command line says instead of the file; outlives every reload.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--host`.
    pub host: Option<String>,
    /// `--port`.
    pub port: Option<u16>,
}

/// What a reload did, or would do.
#[derive(Debug)]
pub struct Outcome {
    /// The differences in the user's words; empty = the file means what it meant.
    pub difference: Vec<String>,
    /// What is odd about the new configuration.
    pub warnings: Vec<Problem>,
    /// Its generation; of a dry run, that in force.
    pub generation: u64,
}

/// The last edit that was refused.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// When it was read.
    pub at: SystemTime,
    /// Why it was refused.
    pub report: Report,
}

type Env = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The configuration in force.
pub struct Live {
    snapshot: ArcSwap<Snapshot>,
    warnings: ArcSwap<Vec<Problem>>,
    rejected: ArcSwapOption<Rejected>,
    path: Option<PathBuf>,
    overrides: Overrides,
    env: Box<Env>,
    /// What was judged last, be it accepted or refused. The lock is held through a whole reload: the later one must see
    /// the generation of the earlier.
    judged: Mutex<Fingerprint>,
}

impl Live {
    /// Reads the first configuration: a file, or the built-in one.
    ///
    /// # Errors
    /// Every problem of the file, or of the overrides.
    pub fn open(path: Option<&Path>, overrides: Overrides) -> Result<Self, Report> {
        Self::open_in(path, overrides, Box::new(process_env))
    }

    /// [`Live::open`] in an environment of the caller's own.
    ///
    /// # Errors
    /// Every problem of the file, or of the overrides.
    pub fn open_in(path: Option<&Path>, overrides: Overrides, env: Box<Env>) -> Result<Self, Report> {
        let reading = read(path);
        let judged = reading.fingerprint;
        let (snapshot, warnings) = decide(path, reading, &overrides, &env)?;
        Ok(Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            warnings: ArcSwap::from_pointee(warnings),
            rejected: ArcSwapOption::empty(),
            path: path.map(Path::to_owned),
            overrides,
            env,
            judged: Mutex::new(judged),
        })
    }

    /// The snapshot in force. Call it once for each request, and keep what it answers.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The file that is read; none = the built-in configuration.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is odd about the configuration in force.
    pub fn warnings(&self) -> Arc<Vec<Problem>> {
        self.warnings.load_full()
    }

    /// The last edit that was refused, until a valid one is read.
    pub fn rejected(&self) -> Option<Arc<Rejected>> {
        self.rejected.load_full()
    }

    /// Reads the file, on a thread that may wait for a disk.
    pub fn read(&self) -> Reading {
        read(self.path.as_deref())
    }

    /// Reads the file again. What is valid comes into force at once; what is not changes nothing.
    ///
    /// # Errors
    /// Every problem of the file; it is kept for [`Live::rejected`], too.
    pub fn reload(&self) -> Result<Outcome, Report> {
        self.apply(self.read())
    }

    /// [`Live::reload`] with what has been read of the file.
    ///
    /// # Errors
    /// Every problem of the file; it is kept for [`Live::rejected`], too.
    pub fn apply(&self, reading: Reading) -> Result<Outcome, Report> {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        *judged = reading.fingerprint;
        let (mut snapshot, warnings) =
            decide(self.path.as_deref(), reading, &self.overrides, &self.env).inspect_err(|report| {
                self.rejected.store(Some(Arc::new(Rejected { at: SystemTime::now(), report: report.clone() })));
            })?;
        let old = self.load();
        snapshot.generation = old.generation + 1;
        let generation = snapshot.generation;
        let difference = difference(&old, &snapshot);
        self.snapshot.store(Arc::new(snapshot));
        self.warnings.store(Arc::new(warnings.clone()));
        self.rejected.store(None);
        Ok(Outcome { difference, warnings, generation })
    }

    /// Whether this is what was judged last, be it accepted or refused.
    pub(super) fn has_judged(&self, reading: &Reading) -> bool {
        *self.judged.lock().unwrap_or_else(PoisonError::into_inner) == reading.fingerprint
    }

    /// How many providers a valid file would leave; `None` for one that is not valid.
    pub(super) fn providers_in(&self, reading: &Reading) -> Option<usize> {
        let judged = decide(self.path.as_deref(), reading.clone(), &self.overrides, &self.env);
        judged.ok().map(|(snapshot, _)| snapshot.providers.len())
    }

    /// What a reload would do.
    ///
    /// # Errors
    /// Every problem of the file.
    pub fn dry_run(&self) -> Result<Outcome, Report> {
        let (snapshot, warnings) = decide(self.path.as_deref(), self.read(), &self.overrides, &self.env)?;
        let old = self.load();
        Ok(Outcome { difference: difference(&old, &snapshot), warnings, generation: old.generation })
    }
}

fn read(path: Option<&Path>) -> Reading {
    path.map_or_else(Reading::nothing, Reading::of)
}

fn decide(
    path: Option<&Path>,
    reading: Reading,
    overrides: &Overrides,
    env: &Env,
) -> Result<(Snapshot, Vec<Problem>), Report> {
    if let Some(path) = path {
        return judge(path, reading, overrides, &|name| env(name));
    }
    let mut snapshot = built_in();
    snapshot.settings.port = overrides.port.unwrap_or(snapshot.settings.port);
    if let Some(host) = &overrides.host {
        snapshot.settings.host.clone_from(host);
        if !crate::provider::is_loopback(host) || settings::bind_host(host).is_none() {
            let message = "--host: only this machine can be served without a configuration file".to_owned();
            let cure = "write a file with settings.auth.enabled: true and an api_key of at least 16 characters";
            return Err(Report { file: "built-in".into(), problems: vec![syntax::problem(None, message, cure)] });
        }
    }
    Ok((snapshot, Vec::new()))
}
