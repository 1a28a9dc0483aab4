//! The `onceward` binary.

use std::process::ExitCode;

/// A request makes a few dozen short-lived allocations, some of several KiB: a sixth of the CPU of a fresh request
/// went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onceward_server::cli::run()
}
