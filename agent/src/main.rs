//! The daemon. What it does is in the library, where it can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    vsock_agent::run()
}
