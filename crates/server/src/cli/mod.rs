//! The command line. [`args`] is what can be typed; what it does stands beside it, one file a command.

pub mod args;
