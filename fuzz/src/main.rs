//! `cargo xtask fuzz`: each target for its share of the time, from a seed that is printed. An input that breaks one is
//! written to `regressions`, where the tests find it from then on.

use std::process::ExitCode;
use std::time::Duration;

use onceward_fuzz::{TARGETS, Target, make_bases, run};

const USAGE: &str = "usage: fuzz [--seconds N] [--seed N] [TARGET…]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["make-bases"] {
        return match make_bases() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => wrong(&error.to_string()),
        };
    }
    let (mut seconds, mut seed) = (60, fastrand::Rng::new().u64(..1 << 32));
    let mut targets: Vec<Target> = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        match word.as_str() {
            "--seconds" => match number() {
                Some(number @ 1..) => seconds = number,
                _ => return wrong("--seconds takes a number from 1"),
            },
            "--seed" => match number() {
                Some(number) => seed = number,
                None => return wrong("--seed takes a number"),
            },
            name => match TARGETS.iter().find(|target| target.name == name) {
                Some(target) => targets.push(*target),
                None => {
                    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                    return wrong(&format!("no target {name:?}; there are: {}", names.join(" ")));
                }
            },
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    // What breaks is said once, at the end, and not for each try to make it smaller.
    std::panic::set_hook(Box::new(|_| {}));
    let share = Duration::from_secs(seconds).div_f64(targets.len() as f64);
    let mut is_well = true;
    for target in targets {
        match run::run(target, share, seed) {
            Err(error) => return wrong(&format!("{}: {error}", target.name)),
            Ok(ran) => {
                println!(
                    "{:<10} {:>9} inputs, {:>4} shapes, {:.1} s, seed {seed}: {}",
                    target.name,
                    ran.inputs,
                    ran.shapes,
                    share.as_secs_f64(),
                    if ran.broken.is_none() { "ok" } else { "BROKEN" }
                );
                if let Some((input, why)) = ran.broken {
                    is_well = false;
                    println!("{why}\n  by {:?}", input.escape_ascii().to_string());
                    match keep(&target, &input) {
                        Ok(file) => println!("  kept in {file}; cargo test -p onceward-fuzz runs it again"),
                        Err(error) => println!("  it could not be kept: {error}"),
                    }
                }
            }
        }
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn keep(target: &Target, input: &[u8]) -> std::io::Result<String> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let folder = target.folder("regressions");
    std::fs::create_dir_all(&folder)?;
    let name = format!("{:016x}", hasher.finish());
    std::fs::write(folder.join(&name), input)?;
    Ok(format!("fuzz/regressions/{}/{name}", target.name))
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("{why}\n{USAGE}");
    ExitCode::from(2)
}
