//! Durable claims a second and CPU time a claim: the embedded store beside a bare log with group commit, in turns on
//! the same disk.
//!
//! ```text
//! cargo run --release -p onceward-store --example log_speed -- [folder] [callers] [seconds] [rounds]
//! cargo run --release -p onceward-store --example log_speed -- folder grow 10000000
//! cargo run --release -p onceward-store --example log_speed -- folder open
//! ```
//!
//! The bare log does the least that durability asks for: one thread writes what is queued into a file written in
//! advance, with one synced write, and wakes the callers. It has no index, no checksums, no compare and set.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use onceward_core::cas::{Expect, FenceRule, Keep, Lease, Replacement};
use onceward_core::key::RecordId;
use onceward_core::outcome::Outcome;
use onceward_core::record::{ClaimId, Facts, Micros, Phase, SessionId, State};
use onceward_store::embedded::{Embedded, Options};
use onceward_store::{Insert, Store};
use tokio::sync::oneshot;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let folder = PathBuf::from(arguments.first().map_or("log-speed", String::as_str));
    if arguments.get(1).is_some_and(|word| word == "grow") {
        return grow(&folder, number(2, 10_000_000)).await;
    }
    if arguments.get(1).is_some_and(|word| word == "open") {
        return open(&folder).await;
    }
    let (callers, seconds, rounds) = (number(1, 64), number(2, 3), number(3, 5));
    let span = Duration::from_secs(seconds);
    println!("{callers} callers, {seconds} s each, {rounds} rounds, in turns");
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let bare_folder = folder.join(format!("bare-{round}"));
        let bare = measure("bare log, group commit", callers, span, Bare::open(&bare_folder)?).await?;
        let store = Embedded::open(folder.join(format!("store-{round}")), Options::default()).await?;
        ready(&store).await;
        let own = measure("embedded store, claims", callers, span, Claims(store.clone())).await?;
        let log = store.log_stats();
        println!(
            "    {:.1} claims a batch, {:.0} bytes a claim",
            per(log.frames, log.batches),
            per(log.bytes, log.frames)
        );
        ratios.push(own / bare);
        drop(store);
        std::fs::remove_dir_all(&folder)?;
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    println!("embedded / bare: median {median:.2} of {ratios:.2?} (P7: 0.80)");
    Ok(())
}

fn per(sum: u64, count: u64) -> f64 {
    sum as f64 / count.max(1) as f64
}

/// Waits for the spare segment, whose making is not part of what is measured.
async fn ready(store: &Embedded) {
    while store.log_stats().spares == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Something that makes one id durable.
trait Target: Clone + Send + 'static {
    fn claim(&self, id: RecordId) -> impl Future<Output = Result<(), Failure>> + Send;
}

#[derive(Clone)]
struct Claims(Embedded);

impl Target for Claims {
    async fn claim(&self, id: RecordId) -> Result<(), Failure> {
        match self.0.insert(id, &facts(), Duration::from_secs(10)).await? {
            Insert::Inserted { .. } => Ok(()),
            Insert::Existing { .. } => Err("two ids are the same".into()),
        }
    }
}

fn facts() -> Facts {
    Facts {
        state: State::InFlight,
        phase: Phase::Dispatched,
        ambiguous: false,
        attempt: 1,
        claim_id: ClaimId([1; 16]),
        session: SessionId([2; 16]),
        principal_proof: None,
        fingerprint_policy: 1,
        fingerprint: [3; 32],
        fields: Vec::new(),
        route: "create-payment".into(),
        tenant: "default".into(),
        env: "production".into(),
        claimed_at: Micros(1),
        settled_at: Micros::ZERO,
        not_before: Micros::ZERO,
        outcome: None,
        checkpoint: None,
        reason: String::new(),
    }
}

/// An id as uniform as a keyed hash's.
fn id(number: u64) -> RecordId {
    let mut id = [0; 32];
    let mut state = number;
    for part in id.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state = state.rotate_left(17) ^ z;
        part.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    RecordId(id)
}

async fn measure(name: &str, callers: u64, span: Duration, target: impl Target) -> Result<f64, Failure> {
    let count = Arc::new(AtomicU64::new(0));
    let (start, cpu) = (Instant::now(), cpu_us()?);
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (target, count) = (target.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let mut waits = Vec::new();
                for turn in 0.. {
                    let asked = Instant::now();
                    if asked.duration_since(start) > span {
                        break;
                    }
                    target.claim(id(caller << 40 | turn)).await?;
                    waits.push(asked.elapsed().as_micros() as u64);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Failure>(waits)
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.append(&mut task.await??);
    }
    let (elapsed, cpu) = (start.elapsed(), cpu_us()? - cpu);
    let done = count.load(Ordering::Relaxed);
    let rate = done as f64 / elapsed.as_secs_f64();
    waits.sort_unstable();
    let quantile = |of: usize| waits.get(waits.len() * of / 1000).copied().unwrap_or_default();
    println!(
        "{name:<24} {rate:>9.0}/s  p50 {:>6} us  p99 {:>6} us  cpu {:>5.1} us/op",
        quantile(500),
        quantile(990),
        cpu as f64 / done.max(1) as f64
    );
    Ok(rate)
}

/// CPU time of this process so far, from the scheduler's own accounting, threads that have ended left out.
fn cpu_us() -> Result<u64, Failure> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let Ok(line) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let nanoseconds = line.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or_default();
        sum += nanoseconds / 1_000;
    }
    Ok(sum)
}

/// What is queued for the bare log's next write.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    callers: Vec<oneshot::Sender<()>>,
    idle: bool,
}

/// The bare log.
#[derive(Clone)]
struct Bare {
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

impl Bare {
    const LEN: u64 = 64 << 20;

    fn open(folder: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join("log");
        std::fs::write(&path, vec![0; Self::LEN as usize])?;
        std::fs::File::open(&path)?.sync_all()?;
        let dsync = i32::try_from(rustix::fs::OFlags::DSYNC.bits())?;
        let file = std::fs::OpenOptions::new().write(true).custom_flags(dsync).open(&path)?;
        let queue = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let (sender, mut batches) = tokio::sync::mpsc::channel::<Vec<oneshot::Sender<()>>>(16);
        let shared = Arc::downgrade(&queue);
        std::thread::spawn(move || {
            let mut at = 0;
            let mut spare = Vec::new();
            while let Some(queue) = shared.upgrade() {
                let Ok(mut guard) = queue.0.lock() else { return };
                if guard.callers.is_empty() {
                    guard.idle = true;
                    let Ok((again, _)) = queue.1.wait_timeout(guard, Duration::from_millis(100)) else { return };
                    guard = again;
                    if guard.callers.is_empty() {
                        continue;
                    }
                }
                spare.clear();
                std::mem::swap(&mut guard.bytes, &mut spare);
                let callers = std::mem::take(&mut guard.callers);
                drop(guard);
                if at + spare.len() as u64 > Self::LEN {
                    at = 0;
                }
                if file.write_all_at(&spare, at).is_err() || sender.blocking_send(callers).is_err() {
                    return;
                }
                at += spare.len() as u64;
            }
        });
        tokio::spawn(async move {
            while let Some(callers) = batches.recv().await {
                for caller in callers {
                    let _ = caller.send(());
                }
            }
        });
        Ok(Self { queue })
    }
}

impl Target for Bare {
    async fn claim(&self, id: RecordId) -> Result<(), Failure> {
        let (sender, done) = oneshot::channel();
        {
            let mut queue = self.queue.0.lock().map_err(|_| "the log's thread is gone")?;
            queue.bytes.extend_from_slice(&id.0);
            queue.bytes.extend_from_slice(&[7; 268]);
            queue.callers.push(sender);
            if std::mem::take(&mut queue.idle) {
                self.queue.1.notify_one();
            }
        }
        Ok(done.await?)
    }
}

/// P8: the same at ten thousand records and at `records` completed ones, and the memory they take.
async fn grow(folder: &Path, records: u64) -> Result<(), Failure> {
    let options = || {
        let mut options = Options::default();
        options.records_max = 20_000_000;
        options
    };
    let store = Embedded::open(folder, options()).await?;
    let day = Duration::from_secs(86_400);
    let callers = 512;
    let mut done = 0;
    for goal in [10_000, records] {
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let store = store.clone();
                tokio::spawn(async move {
                    for number in (done + caller..goal).step_by(callers as usize) {
                        fill(&store, id(u64::MAX - number), day).await?;
                    }
                    Ok::<_, Failure>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        done = goal;
        println!("{goal} records, {} MiB resident", resident_mib()?);
        for round in 0..3_u64 {
            measure("claims", 64, Duration::from_secs(3), Offset(store.clone(), (goal + round) << 20)).await?;
        }
    }
    store.close().await;
    Ok(())
}

/// P8: opening what `grow` left, in a process of its own.
async fn open(folder: &Path) -> Result<(), Failure> {
    let start = Instant::now();
    let store = Embedded::open(folder, Options::default()).await?;
    println!("opened {} records in {:?}, {} MiB resident", store.stats().records, start.elapsed(), resident_mib()?);
    Ok(())
}

#[derive(Clone)]
struct Offset(Embedded, u64);

impl Target for Offset {
    async fn claim(&self, RecordId(mut id): RecordId) -> Result<(), Failure> {
        // Another round's ids, and done at once, so that nothing of it stays.
        id.iter_mut().zip(self.1.to_le_bytes()).for_each(|(byte, other)| *byte ^= other);
        let id = RecordId(id);
        let Insert::Inserted { fence, .. } = self.0.insert(id, &facts(), Duration::from_secs(10)).await? else {
            return Err("two ids are the same".into());
        };
        self.0.remove(id, Expect::Holder(fence)).await?;
        Ok(())
    }
}

async fn fill(store: &Embedded, id: RecordId, keep: Duration) -> Result<(), Failure> {
    let Insert::Inserted { fence, .. } = store.insert(id, &facts(), Duration::from_secs(10)).await? else {
        return Err("two ids are the same".into());
    };
    let outcome = Outcome { status: 201, body: vec![b'x'; 100].into(), ..Outcome::default() };
    let write = Replacement {
        expect: Expect::Holder(fence),
        facts: Facts { state: State::Completed, outcome: Some(outcome), ..facts() },
        fence: FenceRule::Keep,
        lease: Lease::Over,
        keep: Keep::For(keep),
    };
    store.replace(id, &write).await?;
    Ok(())
}

fn resident_mib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default();
    Ok(kib / 1024)
}
