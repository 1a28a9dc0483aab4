//! The view protocol of durability `journaled` (GUARANTEES sections 2.3 to 2.9) as a model that is explored wholly: one
//! or two keys, two Redis servers, one to three gateways, Postgres and its standby. `store/journaled` is its code.
//!
//! Read it beside those sections, in this order: [`state`] what there is; [`keys`] what a gateway does with a key;
//! [`views`] how views begin, serve and end; [`retire`] how a session is retired; [`database`] views whose server is the
//! journal's own database; [`journal`] what reaches the journal and leaves it; [`faults`] what goes wrong; [`properties`] what must hold all the same; [`mutants`] the ways to get it
//! wrong that must be found; [`experiments`] which of it is explored together. [`model`] lists the steps, [`reduce`] makes
//! fewer states of many, [`packing`] hashes them, [`explore`] runs it.
//!
//! Time is adversarial: a lease ends, a retention passes, a gateway pauses at any moment, and the store's clock never
//! helps a fence. A step is atomic where a script or a transaction makes it so.

mod database;
mod experiments;
mod explore;
mod faults;
mod journal;
mod keys;
mod model;
mod mutants;
mod packing;
mod properties;
mod reduce;
mod retire;
mod state;
mod views;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match explore::run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
