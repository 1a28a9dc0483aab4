//! Every case of the list on every store of this crate, one test a name.

use onceward_store::conformance;

onceward_store::conformance_tests!(memory, onceward_store::conformance::OnMemory);
onceward_store::conformance_tests!(memory_waiting, onceward_store::conformance::OnMemoryWaiting);
onceward_store::conformance_tests!(fallback, onceward_store::conformance::OnFallback::FirstIsWell);
onceward_store::conformance_tests!(fallback_first_dead, onceward_store::conformance::OnFallback::FirstIsDead);
#[cfg(feature = "embedded")]
onceward_store::conformance_tests!(embedded, onceward_store::conformance::OnEmbedded);

#[test]
fn every_name_has_one_case_that_runs_somewhere() {
    let wrong = conformance::check(&conformance::subjects());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(conformance::NAMES.len(), 84);
}
