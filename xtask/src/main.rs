//! The project's own tasks.

mod conformance;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["conformance", "--list"] => conformance::list(),
        ["conformance", "--names"] => {
            conformance::names().iter().for_each(|name| println!("{name}"));
            Ok(())
        }
        _ => anyhow::bail!("usage: cargo xtask conformance --list|--names"),
    }
}
