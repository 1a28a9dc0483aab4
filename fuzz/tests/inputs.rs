//! Every input of the corpora, and every one that once broke something.

use onceward_fuzz::{TARGETS, run};

#[test]
fn no_input_that_is_kept_breaks_its_target() {
    let mut broken = Vec::new();
    for target in TARGETS {
        let corpus = target.inputs("corpus").unwrap();
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        for (name, input) in corpus.into_iter().chain(target.inputs("regressions").unwrap()) {
            if let Err(why) = run::outcome(*target, &input) {
                broken.push(format!("{}/{name}: {why}", target.name));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
