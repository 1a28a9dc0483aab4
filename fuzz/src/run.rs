//! A bounded run on stable Rust with nothing else installed: inputs are changed, and one that does something new is kept
//! to be changed further. What does something new is told by the target itself, which is less than coverage tells; see
//! `guided.rs` for that.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::Target;
use crate::mutate::mutated;

/// An input that takes longer than this is a finding too.
pub const INPUT_MAX: Duration = Duration::from_secs(10);
/// Inputs that are kept in memory.
const CORPUS_MAX: usize = 5000;
/// Tries to make a finding smaller.
const SHRINKS_MAX: usize = 2000;

/// What a run did.
#[derive(Debug)]
pub struct Ran {
    /// Inputs that were tried.
    pub inputs: u64,
    /// Different things that happened.
    pub shapes: usize,
    /// An input that broke it, and what it said.
    pub broken: Option<(Vec<u8>, String)>,
}

/// Tries inputs for so long, from the corpus, the regressions and the seed.
///
/// # Errors
/// Where a corpus cannot be read.
pub fn run(target: Target, time: Duration, seed: u64) -> std::io::Result<Ran> {
    let seeds: Vec<Vec<u8>> = [target.inputs("corpus")?, target.inputs("regressions")?]
        .concat()
        .into_iter()
        .map(|(_, input)| input)
        .collect();
    let present: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (tell, told) = mpsc::channel();
    let of_thread = Arc::clone(&present);
    std::thread::spawn(move || {
        let beat = |input: &[u8]| {
            let mut present = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
            present.clear();
            present.extend_from_slice(input);
            // The other end waits for as long as the run goes on.
            let _heard = tell.send(None);
        };
        let ran = search(target, seeds, time, seed, beat);
        let _heard = tell.send(Some(ran));
    });
    let end = Instant::now() + time + INPUT_MAX;
    loop {
        match told.recv_timeout(INPUT_MAX) {
            Ok(Some(ran)) => return Ok(ran),
            Ok(None) if Instant::now() < end + INPUT_MAX => {}
            // The thread hangs in this input; it ends with the process.
            _ => {
                let input = present.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let why = format!("no end within {} s", INPUT_MAX.as_secs());
                return Ok(Ran { inputs: 0, shapes: 0, broken: Some((input, why)) });
            }
        }
    }
}

fn search(target: Target, seeds: Vec<Vec<u8>>, time: Duration, seed: u64, mut beat: impl FnMut(&[u8])) -> Ran {
    let mut rng = Rng::with_seed(seed);
    let mut shapes = HashSet::new();
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let mut inputs = 0;
    let began = Instant::now();
    let mut first = seeds.into_iter();
    while began.elapsed() < time {
        let input = first.next().unwrap_or_else(|| mutated(&target, &corpus, &mut rng));
        beat(&input);
        inputs += 1;
        match outcome(target, &input) {
            Ok(shape) if shapes.insert(shape) && corpus.len() < CORPUS_MAX => corpus.push(input),
            Ok(_) => {}
            Err(_) => {
                let small = shrunk(target, input, &mut beat);
                let why = outcome(target, &small).err().unwrap_or_default();
                return Ran { inputs, shapes: shapes.len(), broken: Some((small, why)) };
            }
        }
    }
    Ran { inputs, shapes: shapes.len(), broken: None }
}

/// The shape of an input, or what it broke with.
///
/// # Errors
/// The message of the panic.
pub fn outcome(target: Target, input: &[u8]) -> Result<u64, String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// A smaller input that breaks it too.
fn shrunk(target: Target, mut input: Vec<u8>, beat: &mut impl FnMut(&[u8])) -> Vec<u8> {
    let mut tries = 0;
    let mut size = input.len() / 2;
    while size > 0 && tries < SHRINKS_MAX {
        let mut at = 0;
        while at < input.len() && tries < SHRINKS_MAX {
            let mut less = input.clone();
            less.drain(at..(at + size).min(input.len()));
            tries += 1;
            beat(&less);
            if outcome(target, &less).is_err() {
                input = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    input
}
