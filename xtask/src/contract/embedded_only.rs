//! The tests from outside that are about the embedded store alone, and those that a preview lacks: `cargo xtask contract`
//! leaves them out elsewhere, and says so.

use super::Store;
use crate::tree::Text;

/// Each by its name, with the reason; those that are left out on this store.
pub(super) fn left_out(store: Store) -> Vec<(&'static str, &'static str)> {
    match store {
        Store::Embedded => Vec::new(),
        Store::Tiered("journaled") => [EMBEDDED_ONLY, NOT_JOURNALED].concat(),
        _ => EMBEDDED_ONLY.to_vec(),
    }
}

/// Those that do not hold where every route is journaled.
const NOT_JOURNALED: &[(&str, &str)] = &[
    (
        "crashes::in_two_phases_a_claim_that_was_never_sent_is_taken_over",
        "it asks before Redis has every row of the journal, and claims count as sent until then",
    ),
    ("quotas::a_quota_is_changed_while_the_process_runs", UNCOUNTED),
    ("quotas::a_tenant_whose_records_take_too_much_room_gets_no_fresh_key", UNCOUNTED),
    ("quotas::a_tenant_with_as_many_records_as_it_may_have_gets_no_fresh_key_until_one_is_gone", UNCOUNTED),
];
const UNCOUNTED: &str = "quotas do not count what tenants have there yet";

/// Those that are about a folder, on every other store.
const EMBEDDED_ONLY: &[(&str, &str)] = &[
    ("attacks::a_flood_of_fresh_keys_fills_neither_memory_nor_another_tenants_room", BOUNDED),
    (
        "attacks::ten_thousand_duplicates_wait_and_get_the_one_answer",
        "in a database each is looked up in a call of its own, one after another, and so many outlast `store.deadline`",
    ),
    ("folder::a_lost_or_foreign_secret_refuses_to_start_since_every_key_would_be_new", SECRET),
    ("maintenance::ended_records_wait_for_their_window_unless_their_room_is_needed", BOUNDED),
    ("observe::neither_a_store_that_hangs_nor_one_that_refuses_nor_an_upstream_that_is_gone_changes_anything", BOUNDED),
    ("outages::a_disk_without_room_keeps_some_for_the_answers_of_what_runs", "it fills the folder's disk"),
    ("outages::a_full_store_takes_no_fresh_key_and_answers_repeats", BOUNDED),
    ("process::a_damaged_secret_is_refused", SECRET),
    ("process::a_folder_of_something_else_is_left_as_it_was", "the folder holds no records"),
    ("process::a_folder_that_another_process_has_is_refused_with_its_pid", "any number of processes share a store"),
    ("process::no_key_credential_body_or_raw_path_gets_out", "it searches the folder's files"),
    ("process::the_first_line_of_the_log_says_what_is_protected_and_the_folder_is_made", SECRET),
    (
        "reload::a_changed_listener_or_store_is_refused_by_name",
        "the environment says where the store is, and counts before the file",
    ),
    ("quotas::no_tenant_takes_more_than_half_of_a_bounded_store_unless_it_is_alone_or_told_so", BOUNDED),
    ("settings::a_folder_that_a_restart_may_empty_is_warned_about_or_refused", "the folder holds no records"),
    (
        "reconcile::what_does_not_fit_is_told_by_kind_and_repaired_as_far_as_the_route_allows",
        "its command reads the folder",
    ),
    ("silence::no_decision_tells_a_key_a_tenant_a_path_a_body_or_a_credential", BOUNDED),
];

const BOUNDED: &str = "`store.max_records` bounds that store alone";
const SECRET: &str = "only there a secret is drawn and kept in the folder";

/// Names of the list that no test has.
pub(crate) fn gone(texts: &[Text], tests: &str) -> Vec<String> {
    let is_there = |name: &str| {
        let (module, function) = name.rsplit_once("::").unwrap_or(("", name));
        let file = format!("{tests}proxy/{}.rs", module.replace("::", "/"));
        texts.iter().any(|text| text.path == file && text.text.contains(&format!("fn {function}(")))
    };
    let gone = EMBEDDED_ONLY.iter().chain(NOT_JOURNALED).filter(|(name, _)| !is_there(name));
    gone.map(|(name, _)| format!("`{name}` is listed as left out, and there is no such test")).collect()
}
