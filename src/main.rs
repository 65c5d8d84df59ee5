//! Arguments in, exit status out; everything between is the library's.

use std::process::ExitCode;

use clap::Parser;
use claude_code_balancer::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
