//! Arguments in, exit status out; everything between is the library's.

use std::process::ExitCode;

use clap::Parser;
use claude_code_balancer::cli::{self, Cli};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli::run(cli),
        Err(said) => {
            let _ = said.print();
            // `EX_USAGE`, as for a configuration that cannot be used; help and version are no mistakes.
            if said.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
        }
    }
}
