//! What the log must keep through crashes, errors and damage, on a disk that forgets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::batch::{BATCH_HEADER, FRAME_HEADER};
use super::forgetful::{Crash, Forgetful, Random};
use super::keeper::{Keeper, Step};
use super::segment::HEADER_ROOM;
use super::writer::{Turn, Writer};
use super::*;

const SEGMENT: u32 = 32 << 10;
const EIO: i32 = 5;

/// A log stepped by hand, and what it said of every frame.
struct Bench {
    log: Log<u64>,
    writer: Writer<u64>,
    keeper: Keeper<u64>,
    done: Arc<Mutex<Vec<Done<u64>>>>,
    report: OpenReport,
    /// What opening showed, by id, the later over the earlier.
    shown: BTreeMap<[u8; 16], Entry>,
    disk: Arc<Forgetful>,
}

fn options() -> Options {
    Options { segment_bytes: SEGMENT, reserve_bytes: 0, tag_of, ..Options::default() }
}

/// Something of the payload that a few of them share.
fn tag_of(payload: &[u8]) -> u64 {
    u64::from(payload.first().copied().unwrap_or_default() % 5)
}

fn open_with(disk: &Arc<Forgetful>, options: Options) -> Result<Bench, OpenError> {
    let mut shown = BTreeMap::new();
    let dyn_disk: Arc<dyn Disk> = Arc::clone(disk) as Arc<dyn Disk>;
    let opened = Log::<u64>::open(dyn_disk, options, &mut |entry| {
        shown.insert(entry.id, entry);
    })?;
    let report = opened.report().clone();
    let done = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&done);
    let time = std::sync::atomic::AtomicU64::new(report.time_us);
    let clock: Clock = Arc::new(move || time.fetch_add(1, Ordering::Relaxed) + 1);
    let prepared = opened.prepare(clock, Arc::default(), Box::new(move |batch| lock(&sink).push(batch)));
    let (log, writer, keeper) = prepared.map_err(|source| OpenError::Io { file: "start".into(), source })?;
    Ok(Bench { log, writer, keeper, done, report, shown, disk: Arc::clone(disk) })
}

fn open(disk: &Arc<Forgetful>) -> Result<Bench, OpenError> {
    open_with(disk, options())
}

fn id(key: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&key.to_le_bytes());
    id[8..16].copy_from_slice(&(!key).to_le_bytes());
    id
}

fn half(key: u64) -> [u8; 16] {
    id(key)[..16].try_into().unwrap()
}

/// The payload a key has at a version; its length varies.
fn payload(key: u64, version: u64) -> Vec<u8> {
    let mut random = Random(key << 32 | version);
    let mut bytes = version.to_le_bytes().to_vec();
    for _ in 0..random.below(60) {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes
}

impl Bench {
    fn put(&self, key: u64, version: u64) {
        let payload = payload(key, version);
        let frame = Frame { kind: Kind::Put, id: &id(key), keep_until_s: 9, payload: &payload };
        self.log.append(&frame, key).unwrap();
    }

    fn remove(&self, key: u64) {
        let frame = Frame { kind: Kind::Remove, id: &id(key), keep_until_s: 0, payload: &[] };
        self.log.append(&frame, key).unwrap();
    }

    /// Writes what is queued and lets the keeper finish; what became of the batch.
    fn commit(&mut self) -> Option<Outcome> {
        let turn = self.writer.turn(false);
        while self.keeper.step() == Step::Done {
            if self.disk.stopped() {
                break;
            }
        }
        (turn == Turn::Over).then(|| lock(&self.done).last().unwrap().outcome.clone())
    }

    fn version(&self, key: u64) -> Option<u64> {
        let entry = self.shown.get(&half(key)).filter(|entry| entry.kind == Kind::Put)?;
        let record = self.log.read(entry.position, entry.len, &half(key)).unwrap();
        assert_eq!(record.id, id(key));
        let version = u64::from_le_bytes(record.payload[..8].try_into().unwrap());
        assert_eq!(record.payload, payload(key, version), "key {key}");
        Some(version)
    }
}

/// What must be there after a crash: for every key the versions it may have.
#[derive(Default, Debug, Clone)]
struct Expected {
    /// What was acknowledged last. None: removed, or never there.
    sure: BTreeMap<u64, Option<u64>>,
    /// The batch that was on its way.
    open: BTreeMap<u64, Option<u64>>,
}

const KEYS: u64 = 12;

/// A scripted history: batches of puts and removes over a few keys, live ones copied forward so that segments can be
/// dropped. Stops at the disk's first error.
fn history(bench: &mut Bench, seed: u64, batches: u64, expected: &mut Expected) {
    let mut random = Random(seed);
    // Where each key's newest frame stands: a segment that holds none is dropped.
    let mut places: BTreeMap<u64, Position> = BTreeMap::new();
    for key in 0..KEYS {
        if let Some(entry) = bench.shown.get(&half(key)).filter(|entry| entry.kind == Kind::Put) {
            places.insert(key, entry.position);
        }
    }
    let start = bench.report.time_us * 1000;
    for batch in 0..batches {
        expected.open.clear();
        let size = 1 + random.below(4);
        for _ in 0..size {
            let key = random.next() % KEYS;
            if expected.open.contains_key(&key) {
                continue;
            }
            if random.below(4) == 0 {
                bench.remove(key);
                expected.open.insert(key, None);
            } else {
                let version = start + batch;
                bench.put(key, version);
                expected.open.insert(key, Some(version));
            }
        }
        let oldest = bench.log.segments()[0];
        // A live record of the oldest segment moves on.
        let behind = places.iter().find(|(key, place)| place.segment == oldest && !expected.open.contains_key(key));
        if let Some((&key, _)) = behind
            && let Some(&Some(version)) = expected.sure.get(&key)
            && bench.log.segments().len() > 2
        {
            bench.put(key, version);
            expected.open.insert(key, Some(version));
        }
        let outcome = bench.commit();
        if bench.disk.stopped() {
            // A batch that was reported durable before the end counts.
            if !matches!(outcome, Some(Outcome::Durable { .. })) {
                return;
            }
        }
        match outcome {
            Some(Outcome::Durable { segment }) => {
                expected.sure.append(&mut expected.open.clone());
                expected.open.clear();
                for placed in &lock(&bench.done).last().unwrap().placed {
                    match expected.sure.get(&placed.ticket) {
                        Some(Some(_)) => places.insert(placed.ticket, Position { segment, offset: placed.offset }),
                        _ => places.remove(&placed.ticket),
                    };
                }
            }
            Some(Outcome::Unknown(_)) => {}
            Some(Outcome::NotWritten(_)) | None => {
                expected.open.clear();
            }
        }
        if bench.disk.stopped() {
            return;
        }
        let first = places.values().map(|place| place.segment).min().unwrap_or(u32::MAX);
        if bench.log.segments().len() > 2 && first > oldest {
            bench.log.release_before(oldest + 1);
        }
    }
}

fn check(bench: &Bench, expected: &Expected, context: &str) {
    for key in 0..KEYS {
        let sure = expected.sure.get(&key).copied().flatten();
        let found = bench.version(key);
        let open = expected.open.get(&key).copied();
        if let (Some(version), Some(entry)) = (found, bench.shown.get(&half(key))) {
            assert_eq!(entry.tag, tag_of(&payload(key, version)), "key {key} is tagged as another; {context}");
        }
        assert!(
            found == sure || open == Some(found),
            "key {key}: found {found:?}, acknowledged {sure:?}, open {open:?}; {context}\n{}",
            bench.disk.trace()
        );
    }
    // A batch is there whole or not at all.
    let there: Vec<bool> = expected
        .open
        .iter()
        .filter(|(key, open)| expected.sure.get(key).copied().flatten() != **open)
        .map(|(key, open)| bench.version(*key) == *open)
        .collect();
    assert!(there.iter().all(|is| *is) || there.iter().all(|is| !*is), "half a batch {there:?}; {context}");
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_at_any_step_and_nothing_half_is() {
    let seed = 11;
    let whole = Forgetful::new(seed);
    let mut bench = open(&whole).unwrap();
    history(&mut bench, seed, 150, &mut Expected::default());
    let steps = whole.steps();
    assert!(*bench.log.segments().last().unwrap() > 3, "the history fills segments");
    assert!(bench.log.segments()[0] > 1, "the history drops segments");
    let mut cuts = 0;
    for stop in 0..steps {
        for crash in [Crash::Process, Crash::Power] {
            let context = format!("seed {seed}, stopped at step {stop} of {steps}, {crash:?}");
            let disk = Forgetful::new(seed);
            disk.stop_after(stop);
            let mut expected = Expected::default();
            if let Ok(mut bench) = open(&disk) {
                history(&mut bench, seed, 150, &mut expected);
            }
            let disk = disk.after(crash);
            let mut bench = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
            cuts += u64::from(bench.report.cut.is_some());
            check(&bench, &expected, &context);
            // Life goes on, and a second power failure takes nothing that was seen.
            let mut expected =
                Expected { sure: (0..KEYS).map(|key| (key, bench.version(key))).collect(), ..Expected::default() };
            if stop % 3 == 0 {
                history(&mut bench, seed + 1, 3, &mut expected);
            }
            let disk = disk.after(Crash::Power);
            let bench = open(&disk).unwrap_or_else(|error| panic!("{context}, again: {error}"));
            check(&bench, &expected, &context);
        }
    }
    assert!(cuts > 0, "some batch was torn");
}

#[test]
fn a_batch_that_failed_is_unknown_and_never_comes_back_once_the_log_writes_again() {
    for seed in 0..200 {
        let disk = Forgetful::new(seed);
        let mut bench = open(&disk).unwrap();
        let mut expected = Expected::default();
        history(&mut bench, seed, 5, &mut expected);
        bench.put(3, 1);
        disk.fail_after(0, EIO);
        assert!(matches!(bench.commit(), Some(Outcome::Unknown(_))), "seed {seed}");
        assert_eq!((bench.log.stats().reopened, bench.log.stats().broken), (1, false));
        bench.put(4, 2);
        assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })));
        expected.sure.insert(4, Some(2));
        expected.open.clear();
        for crash in [Crash::Process, Crash::Power] {
            let bench = open(&disk.after(crash)).unwrap();
            check(&bench, &expected, &format!("seed {seed}"));
        }
    }
}

#[test]
fn any_single_failing_step_leaves_a_log_that_opens_and_holds_what_was_acknowledged() {
    let seed = 5;
    let whole = Forgetful::new(seed);
    history(&mut open(&whole).unwrap(), seed, 100, &mut Expected::default());
    for fail in 0..whole.steps() {
        for errno in [EIO, 28] {
            let context = format!("seed {seed}, step {fail} fails with {errno}");
            let disk = Forgetful::new(seed);
            disk.fail_after(fail, errno);
            let Ok(mut bench) = open(&disk) else { continue };
            let mut expected = Expected::default();
            history_with_unknown(&mut bench, seed, &mut expected);
            for crash in [Crash::Process, Crash::Power] {
                let bench = open(&disk.after(crash)).unwrap_or_else(|error| panic!("{context}: {error}"));
                check(&bench, &expected, &context);
            }
        }
    }
}

/// As `history`; a batch that ended unknown must not come back, as another was written since.
fn history_with_unknown(bench: &mut Bench, seed: u64, expected: &mut Expected) {
    history(bench, seed, 100, expected);
    bench.keeper.forget_failures();
    bench.writer.forget_failures();
    while bench.keeper.step() == Step::Done {}
    bench.put(0, 7);
    match bench.commit() {
        Some(Outcome::Durable { .. }) => {
            expected.open.clear();
            expected.sure.insert(0, Some(7));
        }
        outcome => panic!("the log works again: {outcome:?}"),
    }
}

/// A log of several segments with everything in it live.
fn filled(seed: u64) -> (Arc<Forgetful>, Expected) {
    let disk = Forgetful::new(seed);
    let mut bench = open(&disk).unwrap();
    let mut expected = Expected::default();
    for batch in 0..150 {
        let key = batch % KEYS;
        bench.put(key, batch);
        expected.sure.insert(key, Some(batch));
        assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })));
    }
    assert!(bench.log.segments().len() >= 3);
    (disk, expected)
}

fn refused(disk: &Arc<Forgetful>) -> String {
    open(disk).err().expect("refused").to_string()
}

#[test]
fn a_bad_batch_before_the_last_refuses_with_file_and_offset_and_accepting_the_loss_opens_for_good() {
    let (disk, _) = filled(1);
    // Without hints everything is read.
    for name in disk.names().into_iter().filter(|name| name.starts_with("hint-")) {
        disk.delete(&name);
    }
    for name in ["segment-00000", "segment-00001", "segment-00002"] {
        let disk = disk.after(Crash::Process);
        disk.damage(name, HEADER_ROOM as usize + 200, 1);
        let error = refused(&disk);
        assert!(error.contains(name) && error.contains("at byte"), "{error}");
        let accepted = open_with(&disk, Options { accept_loss: true, ..options() }).unwrap();
        assert_eq!(accepted.report.losses.len(), 1);
        let loss = &accepted.report.losses[0];
        assert!(loss.to > loss.from && loss.before_us > loss.after_us, "{loss:?}");
        drop(accepted);
        let mut again = open(&disk).unwrap();
        assert_eq!(again.report.losses, []);
        again.put(1, 1000);
        assert!(matches!(again.commit(), Some(Outcome::Durable { .. })));
        drop(again);
        let again = open(&disk).unwrap();
        assert_eq!(again.version(1), Some(1000));
    }
}

#[test]
fn an_incomplete_last_batch_is_cut_and_reported() {
    let disk = Forgetful::new(2);
    let mut bench = open(&disk).unwrap();
    for version in 1..4 {
        bench.put(1, version);
        bench.commit();
    }
    let file = "segment-00000";
    let last = bench.log.stats();
    drop(bench);
    let end = (SEGMENT - HEADER_ROOM) as usize - last.room_bytes as usize;
    disk.damage(file, end - 20, 1);
    let bench = open(&disk).unwrap();
    let cut = bench.report.cut.clone().unwrap();
    assert!(cut.bytes.is_some() && cut.time_us.is_some() && cut.sequence == 3, "{cut:?}");
    assert_eq!(bench.version(1), Some(2));
}

#[test]
fn a_missing_segment_refuses_wherever_it_stood() {
    let (disk, _) = filled(3);
    for name in ["segment-00000", "segment-00001", "segment-00002"] {
        let disk = disk.after(Crash::Process);
        disk.delete(name);
        let error = refused(&disk);
        assert!(error.contains("missing"), "{name}: {error}");
        let accepted = open_with(&disk, Options { accept_loss: true, ..options() }).unwrap();
        assert_eq!(accepted.report.losses.len(), 1, "{name}");
        drop(accepted);
        let mut again = open(&disk).unwrap_or_else(|error| panic!("{name}: {error}"));
        again.put(1, 1000);
        assert!(matches!(again.commit(), Some(Outcome::Durable { .. })));
        drop(again);
        assert_eq!(open(&disk).unwrap().version(1), Some(1000));
    }
}

#[test]
fn a_lost_chain_file_refuses_and_accepting_the_loss_makes_it_anew() {
    let (disk, mut expected) = filled(12);
    for lose in [true, false] {
        if lose {
            disk.delete("onceward-log");
        } else {
            disk.damage("onceward-log", 17, 1);
        }
        assert!(refused(&disk).contains("chain file"), "{}", refused(&disk));
        drop(open_with(&disk, Options { accept_loss: true, ..options() }).unwrap());
        let mut bench = open(&disk).unwrap();
        while *bench.log.segments().last().unwrap() < 9 {
            bench.put(1, 1000);
            assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })));
            if !lose {
                break;
            }
        }
        expected.sure.insert(1, Some(1000));
        drop(bench);
        check(&open(&disk).unwrap(), &expected, "after the chain file was made anew");
    }
}

#[test]
fn one_bad_header_copy_does_no_harm_and_two_refuse() {
    let (disk, expected) = filled(4);
    for name in ["segment-00000", "segment-00001", "segment-00002"] {
        let disk = disk.after(Crash::Process);
        disk.damage(name, 20, 1);
        check(&open(&disk).unwrap(), &expected, name);
        let disk = disk.after(Crash::Process);
        disk.damage(name, (SEGMENT - HEADER_ROOM) as usize + 20, 1);
        if name == "segment-00002" {
            // The last one's was written again when it was opened.
            continue;
        }
        let error = refused(&disk);
        assert!(error.contains("both headers"), "{error}");
        let accepted = open_with(&disk, Options { accept_loss: true, ..options() }).unwrap();
        assert_eq!(accepted.report.losses.len(), 1, "{name}");
        drop(accepted);
        assert_eq!(open(&disk).unwrap_or_else(|error| panic!("{name}: {error}")).report.losses, []);
    }
}

#[test]
fn a_segment_that_does_not_belong_is_given_up_for_good_once_its_loss_is_accepted() {
    let (disk, _) = filled(4);
    let doubled = disk.after(Crash::Process);
    let copy = doubled.content("segment-00001");
    doubled.replace("segment-00031", copy);
    assert!(refused(&doubled).contains("two segments of the same number"), "{}", refused(&doubled));
    let cut = disk.after(Crash::Process);
    // Its successor is gone, and with it the way to it: batches that nobody names.
    cut.delete("segment-00002");
    for disk in [doubled, cut] {
        let error = refused(&disk);
        drop(open_with(&disk, Options { accept_loss: true, ..options() }).unwrap());
        drop(open(&disk).unwrap_or_else(|again| panic!("{error}; accepted, and again: {again}")));
    }
}

#[test]
fn a_foreign_or_damaged_hint_means_a_scan() {
    let (disk, expected) = filled(6);
    let hints: Vec<_> = disk.names().into_iter().filter(|name| name.starts_with("hint-")).collect();
    assert!(hints.len() >= 2);
    check(&open(&disk).unwrap(), &expected, "with hints");
    let other = disk.content(&hints[1]);
    disk.replace(&hints[0], other);
    let len = disk.content(&hints[1]).len();
    disk.damage(&hints[1], len - 3, 4);
    check(&open(&disk).unwrap(), &expected, "with bad hints");
}

#[test]
fn stale_frames_of_a_recycled_segment_never_pass() {
    let disk = Forgetful::new(7);
    let mut bench = open(&disk).unwrap();
    let mut written = 0;
    while bench.log.segments()[0] < 4 {
        bench.put(1, written);
        bench.commit();
        written += 1;
        if let [_, second, ..] = bench.log.segments()[..] {
            bench.log.release_before(second);
        }
    }
    assert!(disk.names().iter().filter(|name| name.starts_with("segment-")).count() <= 3, "slots are used again");
    drop(bench);
    let bench = open(&disk).unwrap();
    assert_eq!((bench.version(1), bench.report.cut.clone()), (Some(written - 1), None));
}

#[test]
fn a_dropped_segment_is_written_over_only_once_its_dropping_is_durable() {
    // Two slots only, and the first is dropped right before its space is needed.
    let two = || Options { segments_max: 2, ..options() };
    let filled = |disk: &Arc<Forgetful>| {
        let mut bench = open_with(disk, two()).unwrap();
        while bench.keeper.step() == Step::Done {}
        let mut written = 0;
        while bench.log.segments().len() < 2 || bench.log.stats().room_bytes > 2000 {
            bench.put(1, written);
            assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })));
            written += 1;
        }
        bench.log.release_before(2);
        let payload = vec![1; 3000];
        bench.log.append(&Frame { kind: Kind::Put, id: &id(2), keep_until_s: 9, payload: &payload }, 2).unwrap();
        (bench, written - 1)
    };
    let (mut bench, _) = filled(&Forgetful::new(1));
    let before = bench.disk.steps();
    assert!(matches!(bench.commit(), Some(Outcome::Durable { segment: 3 })));
    let steps = bench.disk.steps() - before;
    assert!(steps >= 4, "an empty batch, two headers, a mark and the batch");
    for stop in 0..steps {
        for seed in 0..20 {
            for crash in [Crash::Process, Crash::Power] {
                let disk = Forgetful::new(seed);
                let (mut bench, written) = filled(&disk);
                disk.stop_after(stop);
                bench.commit();
                let context = format!("seed {seed}, step {stop}, {crash:?}");
                let bench = open(&disk.after(crash)).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(bench.version(1), Some(written), "{context}");
            }
        }
    }
}

#[test]
fn a_read_of_a_damaged_record_is_damaged_and_of_a_dropped_segment_gone() {
    let (disk, _) = filled(8);
    let mut bench = open(&disk).unwrap();
    let entry = *bench.shown.values().min_by_key(|entry| entry.position).unwrap();
    let at = entry.position.offset as usize + 60;
    disk.damage("segment-00000", at, 1);
    let read = bench.log.read(Position { segment: 1, offset: entry.position.offset }, entry.len, &entry.id);
    assert!(matches!(read, Err(ReadError::Damaged { .. } | ReadError::Gone)), "{read:?}");
    let first = bench.log.segments()[0];
    bench.log.release_before(first + 1);
    let read = bench.log.read(Position { segment: first, offset: 4160 }, 100, &entry.id);
    assert!(matches!(read, Err(ReadError::Gone)));
    bench.commit();
}

#[test]
fn a_full_disk_refuses_claims_keeps_room_for_completions_and_recovers_when_space_returns() {
    let disk = Forgetful::new(9);
    let mut bench = open(&disk).unwrap();
    while bench.keeper.step() == Step::Done {}
    disk.set_space(disk.used() + 1000);
    assert!(bench.log.has_space());
    let mut written = 0;
    while bench.log.segments().len() < 2 {
        bench.put(1, written);
        assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })));
        written += 1;
    }
    assert!(!bench.log.has_space(), "the spare is used and no other can be made");
    bench.put(2, 1);
    assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })), "completions go on");
    loop {
        bench.put(1, written);
        match bench.commit().unwrap() {
            Outcome::Durable { .. } => written += 1,
            Outcome::NotWritten(NotWritten::Full) => break,
            other => panic!("{other:?}"),
        }
    }
    disk.set_space(usize::MAX);
    bench.keeper.forget_failures();
    bench.put(1, written);
    while bench.keeper.step() == Step::Done {}
    assert!(bench.log.has_space());
    assert!(matches!(bench.commit(), Some(Outcome::Durable { .. })));
    drop(bench);
    assert_eq!(open(&disk).unwrap().version(1), Some(written));
}

#[test]
fn a_newer_format_and_a_folder_of_something_else_are_refused_by_name() {
    let disk = Forgetful::new(10);
    drop(open(&disk).unwrap());
    let newer = disk.after(Crash::Process);
    newer.damage("onceward-log", 8, 3);
    assert!(refused(&newer).contains("format 2"), "{}", refused(&newer));
    let newer = disk.after(Crash::Process);
    newer.damage("segment-00000", 8, 3);
    assert!(refused(&newer).contains("segment-00000 has format 2"));
    let foreign = Forgetful::new(1);
    foreign.replace("onceward.secret", vec![1]);
    foreign.replace("postgresql.conf", vec![1]);
    assert!(refused(&foreign).contains("holds postgresql.conf"));
}

#[test]
fn a_log_with_threads_on_a_real_folder_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(Folder::open(folder.path()).unwrap());
    let options = Options { segment_bytes: 64 << 10, ..options() };
    let (sender, receiver) = std::sync::mpsc::sync_channel(100);
    let opened = Log::<u64>::open(Arc::clone(&disk), options.clone(), &mut |_| {}).unwrap();
    let sink: Sink<u64> = Box::new(move |done| sender.send(done).unwrap());
    let log = opened.start(Arc::new(|| 1), Arc::new(AtomicUsize::new(64)), sink).unwrap();
    for key in 0..2000 {
        let payload = payload(key, 1);
        loop {
            let frame = Frame { kind: Kind::Put, id: &id(key), keep_until_s: 0, payload: &payload };
            match log.append(&frame, key) {
                Ok(()) => break,
                Err(AppendError::QueueFull) => drop(receiver.recv().unwrap()),
                Err(error) => panic!("{error}"),
            }
        }
    }
    log.close();
    let last = receiver.try_iter().last().unwrap().outcome;
    assert!(matches!(last, Outcome::Durable { .. }), "{last:?}");
    drop(log);
    let mut shown = 0;
    drop(Log::<u64>::open(disk, options, &mut |_| shown += 1).unwrap());
    assert_eq!(shown, 2000);
}

#[test]
fn what_was_queued_before_a_log_was_closed_is_written_also_where_it_needs_further_segments() {
    let disk = Forgetful::new(1);
    let Bench { log, mut writer, mut keeper, done, .. } = open(&disk).unwrap();
    writer.waits_for_spares(true);
    // Two of them fill a batch, and two batches no longer fit a segment.
    let payload = vec![7; (SEGMENT - 2 * HEADER_ROOM) as usize / 4 - BATCH_HEADER / 2 - FRAME_HEADER];
    let append = |key| {
        let frame = Frame { kind: Kind::Put, id: &id(key), keep_until_s: 9, payload: &payload };
        while let Err(error) = log.append(&frame, key) {
            assert!(matches!(error, AppendError::QueueFull), "{error}");
            std::thread::yield_now();
        }
    };
    (0..2).for_each(append);
    writer.turn(false);
    (2..4).for_each(append);
    std::thread::scope(|scope| {
        scope.spawn(move || writer.run());
        (4..6).for_each(append);
        log.close();
        keeper.run();
    });
    let done = lock(&done);
    assert!(done.iter().all(|batch| matches!(batch.outcome, Outcome::Durable { .. })), "{done:?}");
    assert_eq!(done.iter().map(|batch| batch.placed.len()).collect::<Vec<_>>(), [2, 2, 2]);
}
