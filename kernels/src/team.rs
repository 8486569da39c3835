//! Threads: an explicit rayon pool, and a team of its workers that stays awake for a whole forward pass.
//!
//! A token takes about 200 parallel regions of 50 to 500 µs each. Waking sleeping workers for each would cost more than
//! some regions last, so [`Pool::run`] starts one `broadcast`: worker 0 runs the caller's closure, the others spin for
//! the regions it opens with [`Team::split`] and [`Team::stream`]. The caller's code stays sequential and reads like the paper.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A rayon pool with a fixed number of threads.
#[derive(Debug)]
pub struct Pool {
    pool: rayon::ThreadPool,
}

impl Pool {
    /// A pool of `n_threads` workers (at least one).
    pub fn new(n_threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads.max(1))
            .thread_name(|index| format!("ternbench-{index}"))
            .build()?;
        Ok(Self { pool })
    }

    /// Number of workers.
    pub fn n_threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The rayon pool itself, for work that is not a forward pass.
    pub fn rayon(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Runs `f` on one worker while the others wait, spinning, for the regions it opens.
    pub fn run<R: Send>(&self, f: impl FnOnce(&Team) -> R + Send) -> R {
        let team = Team::new(self.n_threads());
        if team.n == 1 {
            return self.pool.install(|| f(&team));
        }
        let lead = Mutex::new(Some(f));
        let results = self.pool.broadcast(|context| {
            if context.index() != 0 {
                team.follow(context.index());
                return None;
            }
            // Whatever happens to the leader, the followers must be let go, or the broadcast never ends.
            let _release = Release(&team);
            let f = lead.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()?;
            Some(f(&team))
        });
        results.into_iter().flatten().next().expect("worker 0 ran the closure")
    }
}

struct Release<'a>(&'a Team);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
    }
}

type Job = *const (dyn Fn(Range<usize>) + Sync);

#[derive(Clone, Copy)]
struct Region {
    job: Job,
    n_items: usize,
    grain: usize,
    /// Whether the last worker owns the first stretch.
    backwards: bool,
}

/// A counter in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Claimed(AtomicUsize);

/// The workers of one [`Pool::run`].
pub struct Team {
    n: usize,
    /// The region being run. Written by the leader only, while every follower waits.
    job: UnsafeCell<Option<Region>>,
    /// Number of regions opened so far; followers start when it grows.
    epoch: AtomicUsize,
    /// Of the ranges of every stretch, how many are claimed.
    claimed: Vec<Claimed>,
    /// Whether the next stream runs backwards. Used by the leader only.
    backwards: AtomicBool,
    /// Followers that have left the current region.
    left: AtomicUsize,
    panicked: AtomicBool,
    closed: AtomicBool,
    /// How long the leader waited at the ends of regions, in nanoseconds.
    waited_ns: AtomicU64,
}

// SAFETY: `job` is the only field that is not Sync. The leader writes it before the Release increment of `epoch` and after
// every follower has left the previous region (`left`, Acquire); followers read it only after the Acquire load of `epoch`.
unsafe impl Sync for Team {}

impl Team {
    /// The calling thread alone: its regions are plain calls.
    pub fn alone() -> Self {
        Self::new(1)
    }

    fn new(n: usize) -> Self {
        Self {
            n,
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            claimed: (0..n).map(|_| Claimed::default()).collect(),
            backwards: AtomicBool::new(false),
            left: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waited_ns: AtomicU64::new(0),
        }
    }

    /// Regions that all workers took part in, and how long the leader waited for the others at their ends.
    pub fn waits(&self) -> (u64, Duration) {
        let regions = self.epoch.load(Ordering::Relaxed) as u64;
        (regions, Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed)))
    }

    /// Number of workers, the leader included.
    pub fn n_threads(&self) -> usize {
        self.n
    }

    /// Calls `f` on ranges that cover `0..n_items`, on all workers, and returns when all are done. Every worker owns an equal stretch,
    /// the same in every region of the shape, and claims `grain` items of it after the other: memory is read in order, and what is asked
    /// for ahead is its own. Who is done helps the others (a busy core slows one range, not the region). A team of one gets one range.
    ///
    /// Call it from the closure of [`Pool::run`] only, never from inside `f`.
    pub fn split(&self, n_items: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
        self.region(n_items, grain, false, &f);
    }

    /// [`Self::split`] of items that lie in memory behind those of the stream before: stretches are owned forwards and backwards in turn,
    /// so that who ends where the next stream begins goes on there, where it has asked for memory ahead.
    pub fn stream(&self, n_items: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
        self.region(n_items, grain, self.backwards.fetch_xor(true, Ordering::Relaxed), &f);
    }

    fn region(&self, n_items: usize, grain: usize, backwards: bool, f: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = grain.max(1);
        if self.n == 1 || n_items <= grain {
            if n_items > 0 {
                f(0..n_items);
            }
            return;
        }
        // SAFETY: erases the lifetime of `f`. Followers call it only between the `epoch` increment below and their
        // increment of `left`, and this function does not return (nor unwind) before all of them have left.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(Range<usize>) + Sync), Job>(f) };
        self.left.store(0, Ordering::Relaxed);
        for claimed in &self.claimed {
            claimed.0.store(0, Ordering::Relaxed);
        }
        let region = Region { job, n_items, grain, backwards };
        // SAFETY: no follower is inside a region now, see `unsafe impl Sync`.
        unsafe { *self.job.get() = Some(region) };
        self.epoch.fetch_add(1, Ordering::Release);

        let mine = catch_unwind(AssertUnwindSafe(|| self.work(0, f, region)));
        let others_left = || self.left.load(Ordering::Acquire) == self.n - 1;
        if !others_left() {
            let (mut spins, since) = (0, Instant::now());
            while !others_left() {
                relax(&mut spins);
            }
            self.waited_ns.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        match mine {
            Err(panic) => resume_unwind(panic),
            Ok(()) if self.panicked.load(Ordering::Relaxed) => {
                panic!("a worker of the team panicked")
            }
            Ok(()) => {}
        }
    }

    fn work(&self, worker: usize, f: &(dyn Fn(Range<usize>) + Sync), region: Region) {
        let Region { n_items, grain, backwards, .. } = region;
        let n_ranges = n_items.div_ceil(grain);
        let own = if backwards { self.n - 1 - worker } else { worker };
        for stretch in (own..self.n).chain(0..own) {
            let (first, end) = (stretch * n_ranges / self.n, (stretch + 1) * n_ranges / self.n);
            loop {
                let range = first + self.claimed[stretch].0.fetch_add(1, Ordering::Relaxed);
                if range >= end {
                    break;
                }
                f(range * grain..((range + 1) * grain).min(n_items));
            }
        }
    }

    fn follow(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen {
                if self.closed.load(Ordering::Acquire) {
                    return;
                }
                relax(&mut spins);
            }
            seen += 1;
            // SAFETY: the Acquire load of `epoch` made the leader's write visible, and the leader does not write again
            // before this follower increments `left`.
            if let Some(region) = unsafe { *self.job.get() } {
                // SAFETY: `region` keeps the closure alive until every follower has left.
                let f = unsafe { &*region.job };
                if catch_unwind(AssertUnwindSafe(|| self.work(worker, f, region))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.left.fetch_add(1, Ordering::Release);
        }
    }
}

/// A slice whose disjoint parts the workers of a region write at the same time.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `slice`, whose contract forbids overlap between live parts.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Shares `slice` for as long as it is borrowed.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The part `range`; panics when it does not lie inside.
    ///
    /// # Safety
    /// Parts that live at the same time do not overlap.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of one unique borrow, by the contract above")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} items", self.len);
        // SAFETY: inside the borrowed slice (asserted), exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl<T> SharedMut<'_, T> {
    /// The columns `columns` of a matrix with rows of `width`; panics when they do not lie inside.
    ///
    /// # Safety
    /// Parts that live at the same time do not overlap.
    pub unsafe fn columns(&self, width: usize, columns: Range<usize>) -> Columns<'_, T> {
        assert!(columns.start <= columns.end && columns.end <= width, "{columns:?} of {width} columns");
        Columns { matrix: self, width, columns }
    }
}

/// Some columns of all rows of a matrix, which nobody else has.
pub struct Columns<'a, T> {
    matrix: &'a SharedMut<'a, T>,
    width: usize,
    columns: Range<usize>,
}

impl<T> Columns<'_, T> {
    /// Rows of the matrix.
    #[inline(always)]
    pub fn n_rows(&self) -> usize {
        self.matrix.len / self.width
    }

    /// The columns of a row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        let start = row * self.width;
        // SAFETY: by the contract of `SharedMut::columns` nobody else has them, and this borrows them all.
        unsafe { self.matrix.slice(start + self.columns.start..start + self.columns.end) }
    }
}

/// Spins for some tens of microseconds, then offers the core to others: on a busy machine the awaited worker may be descheduled. Beside one
/// thread that never rests, on Zen 3, two threads decode 1.3 times as fast as when they spin 20 times as long, and 1.6 times as fast as when a
/// fifth.
fn relax(spins: &mut u32) {
    *spins += 1;
    if *spins < 1_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_by_any_number_of_threads() {
        for n_threads in [1, 2, 3, 5] {
            let pool = Pool::new(n_threads).unwrap();
            for (n_items, grain) in [(0, 1), (1, 1), (7, 3), (1000, 7), (64, 64), (65, 64)] {
                let visits: Vec<AtomicUsize> = (0..n_items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(|team| {
                    let visit = |range: Range<usize>| {
                        for item in range {
                            visits[item].fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    for _ in 0..25 {
                        team.split(n_items, grain, visit);
                        team.stream(n_items, grain, visit);
                    }
                });
                assert!(visits.iter().all(|count| count.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn a_stream_begins_where_the_one_before_ended() {
        Pool::new(2).unwrap().run(|team| {
            let workers_of_halves = || {
                let workers = [const { std::sync::OnceLock::new() }; 2];
                // Each gets one item.
                let both = std::sync::Barrier::new(2);
                team.stream(2, 1, |half| {
                    both.wait();
                    workers[half.start].set(std::thread::current().id()).unwrap();
                });
                workers.map(|worker| worker.into_inner().unwrap())
            };
            let leader = std::thread::current().id();
            let halves = [(); 3].map(|()| workers_of_halves());
            assert_eq!(halves[0][0], leader);
            assert!(halves.windows(2).all(|two| two[0][1] == two[1][0]), "{halves:?}");
        });
    }

    #[test]
    fn waiting_for_others_is_counted() {
        let waits = |n_threads: usize| {
            Pool::new(n_threads).unwrap().run(|team| {
                let leader = std::thread::current().id();
                // Each gets one item, and the leader is done first.
                let both = std::sync::Barrier::new(team.n_threads());
                team.split(n_threads, 1, |_| {
                    both.wait();
                    if std::thread::current().id() != leader {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
                team.waits()
            })
        };
        assert_eq!(waits(1), (0, Duration::ZERO), "nobody to wait for");
        let (regions, waited) = waits(2);
        assert!(regions == 1 && waited > Duration::ZERO, "{waited:?}");
    }

    #[test]
    fn a_panic_in_a_region_or_in_the_leader_ends_the_run() {
        let pool = Pool::new(2).unwrap();
        let region = catch_unwind(AssertUnwindSafe(|| {
            pool.run(|team| team.split(100, 1, |range| assert!(!range.contains(&50), "item 50")));
        }));
        assert!(region.is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| pool.run(|_| panic!("leader")))).is_err());
        assert_eq!(pool.run(|team| team.n_threads()), 2, "the pool is usable afterwards");
    }
}
