//! Patterns that can never be the first to match, since an earlier one matches all that they do.

use crate::route::Glob;

use super::file::RouteEntry;
use super::problem::{Problems, quote};

/// A file with more routes than this gets no such warnings: each is compared with all before it.
const ROUTE_LIMIT: usize = 500;

/// Warns of each shadowed pattern, naming the first that hides it. Exact names are asked before all patterns, so they
/// neither hide nor are hidden.
pub(super) fn check(routes: &[RouteEntry], problems: &mut Problems) {
    if routes.len() > ROUTE_LIMIT {
        return;
    }
    let mut earlier: Vec<(Glob, &RouteEntry)> = Vec::new();
    for route in routes.iter().filter(|route| Glob::is_pattern(&route.pattern)) {
        // A pattern that matches the text of another, with its wildcards taken for ordinary characters, matches all that
        // the other does, unless a `?` of the first stands where the second has a `*`.
        let hides = |(glob, other): &&(Glob, &RouteEntry)| {
            let same = other.pattern.to_lowercase() == route.pattern.to_lowercase();
            same || (glob.matches(&route.pattern) && !(other.pattern.contains('?') && route.pattern.contains('*')))
        };
        if let Some((_, other)) = earlier.iter().find(hides) {
            let message = format!(
                "is never asked first: {} at line {} matches all of it",
                quote(&other.pattern),
                other.place.line
            );
            let cure = "put the narrower pattern first; as it stands this one is only a fallback";
            problems.warning(Some(route.place), &route.path, message, cure);
        }
        earlier.push((Glob::new(&route.pattern), route));
    }
}
