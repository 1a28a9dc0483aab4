//! How inputs are changed.

use fastrand::Rng;

use crate::Target;

/// An input made of one or two of `corpus` and the target's words.
#[must_use]
pub fn mutated(target: &Target, corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = match corpus.len() {
        0 => Vec::new(),
        count => corpus[rng.usize(..count)].clone(),
    };
    // Mostly few changes, sometimes many.
    let changes = 1_usize << rng.usize(..5);
    for _ in 0..=rng.usize(..changes) {
        change(target, corpus, &mut input, rng);
    }
    input.truncate(target.bytes_max);
    input
}

fn change(target: &Target, corpus: &[Vec<u8>], input: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let longest = 1_usize << rng.usize(..7);
    let end = (at + 1 + rng.usize(..longest)).min(input.len());
    match rng.usize(..10) {
        0 if at < input.len() => input[at] ^= 1 << rng.usize(..8),
        1 if at < input.len() => input[at] = rng.u8(..),
        2 if at < input.len() => {
            let near = [input[at].wrapping_add(1), input[at].wrapping_sub(1), 0, 0xff, b'0', b'9'];
            input[at] = near[rng.usize(..near.len())];
        }
        3 => drop(input.drain(at..end)),
        4 => {
            // A piece of its own, once more.
            let piece = input[at..end].to_vec();
            let to = rng.usize(..=input.len());
            drop(input.splice(to..to, piece));
        }
        5 | 6 if !target.words.is_empty() => {
            let word = target.words[rng.usize(..target.words.len())];
            let over = if rng.bool() { at } else { (at + word.len()).min(input.len()) };
            drop(input.splice(at..over, word.bytes()));
        }
        7 if !corpus.is_empty() => {
            // The end of another one.
            let other = &corpus[rng.usize(..corpus.len())];
            let from = rng.usize(..=other.len());
            input.truncate(at);
            input.extend(&other[from..]);
        }
        8 => input.truncate(at),
        _ => {
            let bytes: Vec<u8> = (0..=rng.usize(..8)).map(|_| rng.u8(..)).collect();
            drop(input.splice(at..at, bytes));
        }
    }
}
