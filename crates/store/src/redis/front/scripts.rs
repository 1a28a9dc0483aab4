//! The scripts' text, put together: what each begins with is written once.

use crate::redis::script::Script;

/// One for each call, and for each kind of step.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) insert: Script,
    pub(super) replace: Script,
    pub(super) extend: Script,
    pub(super) release: Script,
    pub(super) get: Script,
    pub(super) look: Script,
    pub(super) install: Script,
    pub(super) admit: Script,
    pub(super) shut_out: Script,
    pub(super) dirty: Script,
    pub(super) clean: Script,
    pub(super) merge_rows: Script,
    pub(super) warm: Script,
}

macro_rules! text {
    ($name:literal) => {
        include_str!(concat!("../scripts/journaled/", $name, ".lua"))
    };
}

const SERVER: &str = text!("server");
const SESSION: &str = text!("session");
const NOW: &str = text!("now");
/// What has a record's key, and nothing of it yet.
const VIEW: &str = "local view = call('GET', KEYS[1])\n";
/// Where a row is merged, and where a step says that it needs one.
const MERGE: &str = "--MERGE";
const NEEDED: &str = "--NEEDED";
/// Where a test puts what fixes or moves the clock.
const CLOCK: &str = "--CLOCK";
#[cfg(any(test, feature = "conformance"))]
const FIXED: &str = "do local fixed = call('GET', (string.gsub(KEYS[1], ':v$', ':clock')))\n\
    if fixed then whi, wlo = unpack('>I4I4', fixed) end\n\
    local moved = call('GET', (string.gsub(KEYS[1], ':v$', ':moved')))\n\
    if moved then local hi, lo = unpack('>I4I4', moved); wlo = wlo + lo; whi = whi + hi\n\
    if wlo >= 4294967296 then wlo = wlo - 4294967296; whi = whi + 1 end\n\
    if whi >= 4294967296 then whi = whi - 4294967296 end end end";

impl Scripts {
    /// With `tell` for PUBLISH, as in the scripts of `cache`.
    pub(super) fn new(tell: &str, clock_moves: bool) -> Self {
        let script = |parts: &[&str]| {
            let text = parts.concat().replace(MERGE, text!("merge")).replace("'PUBLISH'", &format!("'{tell}'"));
            Script::new(&fixing(&text, clock_moves))
        };
        let step = |needed: &str, own: &str| {
            let confirm = text!("confirm").replace(NEEDED, needed);
            script(&[SERVER, text!("begin"), SESSION, NOW, text!("record"), &confirm, own, text!("found")])
        };
        let (shown, held) = (text!("needed_shown"), text!("needed_held"));
        Self {
            insert: step(shown, text!("insert")),
            replace: step(held, text!("replace")),
            extend: step(held, text!("extend")),
            release: step(held, text!("release")),
            get: step(shown, ""),
            look: script(&[text!("look")]),
            install: script(&[SERVER, NOW, text!("install")]),
            admit: script(&[SERVER, text!("admit")]),
            shut_out: script(&[SERVER, VIEW, SESSION, text!("shut_out")]),
            dirty: script(&[SERVER, VIEW, SESSION, text!("dirty")]),
            clean: script(&[SERVER, VIEW, SESSION, NOW, text!("clean")]),
            merge_rows: script(&[SERVER, VIEW, SESSION, NOW, text!("merge_rows")]),
            warm: script(&[SERVER, VIEW, SESSION, text!("warm")]),
        }
    }
}

fn fixing(text: &str, clock_moves: bool) -> String {
    #[cfg(any(test, feature = "conformance"))]
    if clock_moves {
        return text.replace(CLOCK, FIXED);
    }
    debug_assert!(!clock_moves, "only tests fix the clock");
    text.replace(CLOCK, "")
}
