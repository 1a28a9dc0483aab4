//! Opening a log: which segments count, what they hold, and where the last one ends.
//!
//! A crash can leave exactly one thing behind: the last batch of the last segment, incomplete. It is cut and reported.
//! Anything else that does not fit (a bad batch elsewhere, a valid one behind a bad one, a segment missing from the
//! chain, both headers of a segment bad) is damage and refuses to open, with file and offset. Accepting the loss opens
//! what is left, lists the intervals whose keys may run again, and writes them down, so that the next start knows them.

use crate::sync::Arc;
use crate::sync::atomic::{AtomicU32, AtomicU64};
use std::collections::BTreeMap;
use std::io;

use super::file::{Disk, DiskFile, read_vec};
use super::hint::read_hint;
use super::scan::{Progress, Scan, Stop};
use super::segment::{CHAIN, Chain, ChainError, Ending, HEADER_ROOM, Header, HeaderCopy, Segment, slot_name, slot_of};
use super::{Cut, Entry, LOCK, Loss, OpenError, OpenReport};

/// Where accepted losses are written down.
const LOSSES: &str = "onceward-losses";
const LOSSES_BYTES_MAX: u64 = 1 << 20;

/// A log as it was found, before it is written to again.
pub(crate) struct Found {
    pub(crate) chain: Chain,
    /// The segments that count, oldest first, each with how it ends and its first batch's sequence number. The last
    /// one is open.
    pub(crate) segments: Vec<(Arc<Segment>, Ending, u64)>,
    /// Slots that hold nothing that counts, in the order in which they may be used again.
    pub(crate) free: Vec<(u32, Arc<dyn DiskFile>)>,
    /// The lowest slot number that is not taken.
    pub(crate) slot_next: u32,
    /// The lowest segment number that is not taken.
    pub(crate) number_next: u32,
    pub(crate) sequence: u64,
    pub(crate) oldest: u32,
    /// Sealed segments without a usable hint.
    pub(crate) unhinted: Vec<u32>,
    pub(crate) report: OpenReport,
}

/// Looks at what the folder holds. Refuses one of something else, naming what was found.
///
/// Entries that begin with `onceward`, and those that begin with a dot or belong to the file system, are no concern of
/// the log's.
pub(crate) fn open_chain(disk: &dyn Disk, segment_bytes: u32, accept_loss: bool) -> Result<Chain, OpenError> {
    let names = disk.list().map_err(|source| OpenError::io(disk, "", source))?;
    let has = |name: &str| names.iter().any(|entry| entry.name == name);
    let ours = names.iter().find(|entry| entry.file && slot_of(&entry.name).is_some());
    if has(CHAIN) {
        match Chain::read(disk) {
            Ok(chain) => return Ok(chain),
            Err(ChainError::Io(source)) => return Err(OpenError::io(disk, CHAIN, source)),
            Err(ChainError::Newer(format)) => {
                return Err(OpenError::Newer { file: disk.locate(CHAIN), format });
            }
            Err(ChainError::Bad) if accept_loss => {}
            Err(ChainError::Bad) => {
                let what = "the chain file is damaged";
                return Err(OpenError::Damaged { file: disk.locate(CHAIN), offset: 0, what });
            }
        }
    } else if let Some(slot) = ours {
        if !accept_loss {
            let what = "segments without the chain file";
            return Err(OpenError::Damaged { file: disk.locate(&slot.name), offset: 0, what });
        }
    } else if let Some(foreign) = names.iter().find(|entry| !harmless(&entry.name)) {
        return Err(OpenError::NotALog { folder: disk.locate(""), found: foreign.name.clone() });
    }
    Chain::make(disk, segment_bytes).map_err(|source| OpenError::io(disk, CHAIN, source))
}

fn harmless(name: &str) -> bool {
    name == LOCK || name == "lost+found" || name.starts_with("onceward") || name.starts_with('.')
}

/// A slot that carries a segment.
struct Carried {
    slot: u32,
    header: Header,
    file: Arc<dyn DiskFile>,
    /// One copy of the header is missing.
    half: bool,
}

impl Carried {
    /// How it ends by what was read of it.
    fn ending(&self, progress: &Progress) -> Ending {
        Ending {
            number: self.header.number,
            salt: self.header.salt,
            end: progress.end,
            digest: progress.digest,
            frames: progress.frames,
        }
    }

    fn counted(self, ending: Ending) -> (Arc<Segment>, Ending, u64) {
        let segment = Segment {
            number: self.header.number,
            salt: self.header.salt,
            slot: self.slot,
            file: self.file,
            end: AtomicU64::new(ending.end),
            frames: AtomicU32::new(ending.frames),
        };
        (Arc::new(segment), ending, self.header.sequence)
    }

    /// Whether its first batch is there.
    fn holds_a_batch(&self) -> io::Result<bool> {
        let room = u64::from(self.header.segment_bytes - HEADER_ROOM);
        let mut scan = Scan::new(&*self.file, self.header.number, self.header.salt, room, self.header.sequence);
        scan.run(&mut |_| {})?;
        Ok(scan.progress.last_batch.is_some())
    }
}

/// Reads the log. Shows every frame that counts, oldest first; of an id that occurs twice the later one wins.
pub(crate) fn recover(
    disk: &dyn Disk,
    mut chain: Chain,
    accept_loss: bool,
    tag_of: fn(&[u8]) -> u64,
    show: &mut dyn FnMut(Entry),
) -> Result<Found, OpenError> {
    let mut judge = Judge::read(disk, accept_loss, tag_of)?;
    let mut slots = read_slots(disk, &mut chain, &mut judge)?;
    let mut found = Found {
        segments: Vec::new(),
        free: Vec::new(),
        slot_next: slots.slot_next,
        number_next: slots.number_next.max(chain.last.0 + 1),
        sequence: 1,
        oldest: 1,
        unhinted: Vec::new(),
        report: OpenReport::default(),
        chain,
    };
    // The newest segment is read first: its batches say which of the others count.
    if let Some((_, newest)) = slots.carried.pop_last() {
        let mut entries = Vec::new();
        let read = judge.read_segment(&newest, None, u64::MAX, &mut |entry| entries.push(entry))?;
        let last = read.progress;
        make_certain(&newest, &last).map_err(|source| OpenError::io(disk, &slot_name(newest.slot), source))?;
        found.sequence = last.sequence;
        found.oldest = newest.header.oldest.max(last.oldest);
        found.report.time_us = newest.header.time_us.max(last.time_us);
        found.report.fence_mark = newest.header.fence_mark.max(last.fence_mark);
        if found.chain.last.0 > newest.header.number {
            judge.missing(found.chain.last, found.report.time_us, u64::MAX)?;
        }
        for (carried, ending, time_next) in link(&newest.header, found.oldest, &mut slots, &mut judge)? {
            let hint = ending.as_ref().and_then(|ending| read_hint(disk, ending));
            let ending = if let (Some(ending), Some(hint)) = (ending, hint) {
                hint.entries().for_each(&mut *show);
                ending
            } else {
                let read = judge.read_segment(&carried, ending.as_ref(), time_next, show)?;
                if read.whole && ending.is_some() {
                    found.unhinted.push(carried.header.number);
                }
                ending.unwrap_or_else(|| carried.ending(&read.progress))
            };
            found.segments.push(carried.counted(ending));
        }
        entries.into_iter().for_each(&mut *show);
        let ending = newest.ending(&last);
        found.segments.push(newest.counted(ending));
    } else if found.chain.last.0 != 0 {
        judge.missing(found.chain.last, 0, u64::MAX)?;
        found.oldest = found.number_next;
    }
    found.free = slots.free;
    found.report.cut = judge.cut.take();
    found.report.losses = judge.finish()?;
    // Only now that the losses are written down: what is wiped could not be missed any more.
    for (slot, file) in slots.given_up {
        Header::wipe(&*file, found.chain.segment_bytes)
            .map_err(|source| OpenError::io(disk, &slot_name(slot), source))?;
    }
    Ok(found)
}

/// Makes the last segment's state as durable as it looks. What was just read may be in the page cache only: written
/// by a process that was killed before its sync returned, or left there, marked clean, by a sync that failed. Only the
/// last batch can be in that doubt, so it is written again, and so is a header of which one copy is missing.
fn make_certain(carried: &Carried, progress: &Progress) -> io::Result<()> {
    if carried.half {
        carried.header.write(&*carried.file)?;
    }
    if let Some(start) = progress.last_batch {
        let len = usize::try_from(progress.end - start).map_err(io::Error::other)?;
        let batch = read_vec(&*carried.file, start, len)?;
        carried.file.write_synced_at(&batch, start)?;
    }
    Ok(())
}

/// All slots, told apart.
struct Slots {
    carried: BTreeMap<u32, Carried>,
    free: Vec<(u32, Arc<dyn DiskFile>)>,
    /// Those of the free ones that would be damage again at the next start.
    given_up: Vec<(u32, Arc<dyn DiskFile>)>,
    slot_next: u32,
    number_next: u32,
}

impl Slots {
    fn give_up(&mut self, slot: u32, file: Arc<dyn DiskFile>) {
        self.given_up.push((slot, Arc::clone(&file)));
        self.free.push((slot, file));
    }
}

fn read_slots(disk: &dyn Disk, chain: &mut Chain, judge: &mut Judge<'_>) -> Result<Slots, OpenError> {
    let mut slots =
        Slots { carried: BTreeMap::new(), free: Vec::new(), given_up: Vec::new(), slot_next: 0, number_next: 1 };
    let mut names = disk.list().map_err(|source| OpenError::io(disk, "", source))?;
    names.sort_by(|one, other| one.name.cmp(&other.name));
    for entry in names {
        let Some(slot) = slot_of(&entry.name).filter(|_| entry.file) else {
            continue;
        };
        slots.slot_next = slots.slot_next.max(slot + 1);
        let io = |source| OpenError::io(disk, &entry.name, source);
        let file = disk.open(&entry.name).map_err(io)?;
        let (front, back) = Header::read(&*file, chain.segment_bytes).map_err(io)?;
        let header = match (front, back) {
            (HeaderCopy::Newer(format), _) | (_, HeaderCopy::Newer(format)) => {
                return Err(OpenError::Newer { file: disk.locate(&entry.name), format });
            }
            (HeaderCopy::Valid(front), HeaderCopy::Valid(back)) if front == back => Some((front, false)),
            // The copy at the end is written first: its new segment got no batch, and the old one counted no longer.
            (HeaderCopy::Valid(_), HeaderCopy::Valid(back)) => {
                slots.number_next = slots.number_next.max(back.number + 1);
                None
            }
            (HeaderCopy::Valid(header), HeaderCopy::Blank | HeaderCopy::Bad)
            | (HeaderCopy::Blank | HeaderCopy::Bad, HeaderCopy::Valid(header)) => Some((header, true)),
            (HeaderCopy::Blank, HeaderCopy::Blank | HeaderCopy::Bad) => None,
            (HeaderCopy::Bad, HeaderCopy::Blank | HeaderCopy::Bad) => {
                judge.refuse(&entry.name, 0, "both headers of a segment are damaged")?;
                slots.give_up(slot, file);
                continue;
            }
        };
        let Some((header, half)) = header else {
            slots.free.push((slot, file));
            continue;
        };
        if header.log_id != chain.log_id {
            if !judge.accept_loss || chain.last.0 != 0 {
                let what = "a segment of another log";
                return Err(OpenError::Damaged { file: disk.locate(&entry.name), offset: 0, what });
            }
            // The chain file was made anew; its segments know what it said.
            chain.adopt(&header).map_err(|source| OpenError::io(disk, CHAIN, source))?;
        }
        slots.number_next = slots.number_next.max(header.number + 1);
        if slots.carried.contains_key(&header.number) {
            judge.refuse(&entry.name, 0, "two segments of the same number")?;
            slots.give_up(slot, file);
            continue;
        }
        slots.carried.insert(header.number, Carried { slot, header, file, half });
    }
    Ok(slots)
}

/// Follows the chain from the newest segment back to the oldest that counts. Returns the others, oldest first, each
/// with how it ends (where its successor is there to say) and when the next one begins. What is left over is free.
fn link(
    newest: &Header,
    oldest: u32,
    slots: &mut Slots,
    judge: &mut Judge<'_>,
) -> Result<Vec<(Carried, Option<Ending>, u64)>, OpenError> {
    let mut links = Vec::new();
    let mut wanted = newest.before;
    let mut time_next = newest.time_us;
    while wanted.number >= oldest && wanted.number != 0 {
        let (next, ending) = match slots.carried.remove(&wanted.number) {
            Some(next) if next.header.salt == wanted.salt => (next, Some(wanted)),
            other => {
                if let Some(other) = other {
                    let what = "a segment that is not the one its successor names";
                    judge.refuse(&slot_name(other.slot), 0, what)?;
                    slots.give_up(other.slot, other.file);
                }
                let below = slots.carried.range(oldest..wanted.number).next_back().map(|(number, _)| *number);
                let below = below.and_then(|number| slots.carried.remove(&number));
                let time = below.as_ref().map_or(0, |below| below.header.time_us);
                judge.missing((wanted.number, wanted.salt), time, time_next)?;
                match below {
                    Some(below) => (below, None),
                    None => break,
                }
            }
        };
        wanted = next.header.before;
        let time = time_next;
        time_next = next.header.time_us;
        links.push((next, ending, time));
    }
    links.reverse();
    // What the chain does not name was dropped, or given up before its first batch.
    for (number, rest) in std::mem::take(&mut slots.carried) {
        if number >= oldest && rest.holds_a_batch().map_err(|source| judge.io(&slot_name(rest.slot), source))? {
            judge.refuse(
                &slot_name(rest.slot),
                u64::from(HEADER_ROOM),
                "batches in a segment that the chain does not name",
            )?;
            slots.give_up(rest.slot, rest.file);
            continue;
        }
        slots.free.push((rest.slot, rest.file));
    }
    Ok(links)
}

/// A segment as it was read.
struct Read {
    progress: Progress,
    /// It is exactly what its successor says it is.
    whole: bool,
}

/// Decides what is damage, and whether it is accepted.
struct Judge<'a> {
    disk: &'a dyn Disk,
    accept_loss: bool,
    tag_of: fn(&[u8]) -> u64,
    /// Accepted at an earlier start.
    known: Vec<Loss>,
    /// Accepted now.
    new: Vec<Loss>,
    cut: Option<Cut>,
}

impl<'a> Judge<'a> {
    fn read(disk: &'a dyn Disk, accept_loss: bool, tag_of: fn(&[u8]) -> u64) -> Result<Self, OpenError> {
        let known = read_losses(disk).map_err(|source| OpenError::io(disk, LOSSES, source))?;
        Ok(Self { disk, accept_loss, tag_of, known, new: Vec::new(), cut: None })
    }

    fn io(&self, name: &str, source: io::Error) -> OpenError {
        OpenError::io(self.disk, name, source)
    }

    /// Damage that can be passed over only where the operator accepts the loss.
    fn refuse(&self, name: &str, offset: u64, what: &'static str) -> Result<(), OpenError> {
        if self.accept_loss {
            return Ok(());
        }
        Err(OpenError::Damaged { file: self.disk.locate(name), offset, what })
    }

    /// A segment of the chain is not there.
    fn missing(&mut self, (number, salt): (u32, u64), after_us: u64, before_us: u64) -> Result<(), OpenError> {
        if self.known.iter().any(|loss| loss.segment == number && loss.salt == salt && loss.from == 0) {
            return Ok(());
        }
        if !self.accept_loss {
            return Err(OpenError::Missing { folder: self.disk.locate(""), segment: number });
        }
        let file = "a segment that is missing".to_owned();
        self.new.push(Loss { file, segment: number, salt, from: 0, to: 0, sequence: 0, after_us, before_us });
        Ok(())
    }

    /// Reads a segment. `ending`: where its successor says that it ends; without one it is the last, whose end is
    /// where its batches end.
    fn read_segment(
        &mut self,
        carried: &Carried,
        ending: Option<&Ending>,
        time_next: u64,
        show: &mut dyn FnMut(Entry),
    ) -> Result<Read, OpenError> {
        let header = &carried.header;
        let name = slot_name(carried.slot);
        let room = u64::from(header.segment_bytes - HEADER_ROOM);
        let limit = ending.map_or(room, |ending| ending.end);
        let scan = Scan::new(&*carried.file, header.number, header.salt, limit, header.sequence);
        let mut scan = scan.tagging(self.tag_of);
        scan.progress.time_us = header.time_us;
        scan.progress.fence_mark = header.fence_mark;
        scan.progress.oldest = header.oldest;
        let mut whole = true;
        loop {
            let stop = scan.run(show).map_err(|source| self.io(&name, source))?;
            let at = scan.progress.end;
            let known =
                self.known.iter().find(|loss| (loss.segment, loss.salt, loss.from) == (header.number, header.salt, at));
            if let (false, Some(known)) = (stop == Stop::Limit, known) {
                whole = false;
                let (to, sequence) = (known.to, known.sequence);
                scan.skip(to, sequence);
                continue;
            }
            if stop == Stop::Limit {
                break;
            }
            let next = scan.next_header().map_err(|source| self.io(&name, source))?;
            // A whole header with another number is no torn batch: one before it was lost.
            let jumps = matches!(stop, Stop::Torn(Some(head)) if head.sequence != scan.progress.sequence);
            if ending.is_none() && next.is_none() && !jumps {
                self.cut = cut_of(stop, &name, self.disk, &scan.progress, limit);
                break;
            }
            let what = if ending.is_some() { "a bad batch" } else { "a bad batch, and a good one behind it" };
            self.refuse(&name, at, what)?;
            whole = false;
            let (to, sequence, before_us) =
                next.map_or((limit, 0, time_next), |(to, head)| (to, head.sequence, head.time_us));
            self.new.push(Loss {
                file: self.disk.locate(&name),
                segment: header.number,
                salt: header.salt,
                from: at,
                to,
                sequence,
                after_us: scan.progress.time_us,
                before_us,
            });
            scan.skip(to, sequence);
        }
        let progress = scan.progress;
        if let Some(ending) = ending.filter(|_| whole)
            && (progress.end, progress.digest, progress.frames) != (ending.end, ending.digest, ending.frames)
        {
            // Valid batches, but not those that its successor was told of.
            self.refuse(&name, progress.end, "a segment that is not the one its successor names")?;
            whole = false;
        }
        Ok(Read { progress, whole })
    }

    /// Writes down what was accepted now; returns it.
    fn finish(self) -> Result<Vec<Loss>, OpenError> {
        if !self.new.is_empty() {
            let all: Vec<&Loss> = self.known.iter().chain(&self.new).collect();
            write_losses(self.disk, &all).map_err(|source| OpenError::io(self.disk, LOSSES, source))?;
        }
        Ok(self.new)
    }
}

/// What was cut, if anything: a clean end has nothing to cut.
fn cut_of(stop: Stop, name: &str, disk: &dyn Disk, progress: &Progress, limit: u64) -> Option<Cut> {
    let head = match stop {
        Stop::Clean | Stop::Limit => return None,
        Stop::Torn(head) => head,
    };
    Some(Cut {
        file: disk.locate(name),
        offset: progress.end,
        bytes: head.map(|head| head.batch_len().min(limit - progress.end)),
        sequence: progress.sequence,
        time_us: head.map(|head| head.time_us),
    })
}

fn read_losses(disk: &dyn Disk) -> io::Result<Vec<Loss>> {
    let file = match disk.open(LOSSES) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let len = usize::try_from(file.len()?.min(LOSSES_BYTES_MAX)).map_err(io::Error::other)?;
    let text = String::from_utf8(read_vec(&*file, 0, len)?).map_err(io::Error::other)?;
    Ok(text.lines().filter_map(Loss::parse).collect())
}

fn write_losses(disk: &dyn Disk, losses: &[&Loss]) -> io::Result<()> {
    let mut text = String::new();
    for loss in losses {
        text.push_str(&loss.line());
        text.push('\n');
    }
    let new = format!("{LOSSES}.new");
    let file = disk.create(&new)?;
    file.write_at(text.as_bytes(), 0)?;
    file.sync()?;
    disk.rename(&new, LOSSES)?;
    disk.sync_folder()
}

impl Loss {
    fn line(&self) -> String {
        let Self { file, segment, salt, from, to, sequence, after_us, before_us } = self;
        format!(
            "segment={segment} salt={salt:016x} from={from} to={to} sequence={sequence} after_us={after_us} before_us={before_us} file={file}"
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let (numbers, file) = line.split_once(" file=")?;
        let mut values = numbers.split(' ').map(|pair| pair.split_once('=').map(|(_, value)| value));
        let mut next = || values.next().flatten();
        Some(Self {
            segment: next()?.parse().ok()?,
            salt: u64::from_str_radix(next()?, 16).ok()?,
            from: next()?.parse().ok()?,
            to: next()?.parse().ok()?,
            sequence: next()?.parse().ok()?,
            after_us: next()?.parse().ok()?,
            before_us: next()?.parse().ok()?,
            file: file.to_owned(),
        })
    }
}
