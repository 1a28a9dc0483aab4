//! The models, each under some thousand schedules. A failure prints its seed and the schedule that led to it.

use onceward_models::{check, log_model, remembered, waiters, watchers};

#[test]
fn of_requests_with_one_key_one_at_a_time_executes_and_everybody_is_answered() {
    check(1, 2000, waiters::everybody_is_answered);
}

#[test]
fn a_client_that_leaves_takes_no_turn_along() {
    check(2, 2000, waiters::whoever_leaves_takes_no_turn_along);
}

#[test]
fn a_watcher_sleeps_over_no_write() {
    check(3, 3000, watchers::no_write_is_slept_over);
}

#[test]
fn an_answer_that_was_forgotten_meanwhile_is_not_remembered() {
    check(7, 1000, remembered::nothing_is_remembered_but_what_the_store_has);
}

#[test]
fn whoever_appends_is_told_and_what_is_durable_is_there() {
    check(4, 300, log_model::everybody_is_told_and_what_is_durable_is_there);
}

#[test]
fn a_segment_that_is_full_is_followed_by_the_next() {
    check(5, 150, log_model::a_full_segment_is_followed_by_the_next);
}

#[test]
fn a_batch_that_failed_is_unknown_for_all_in_it() {
    check(6, 300, log_model::a_batch_that_failed_is_unknown_for_all_and_for_good);
}
