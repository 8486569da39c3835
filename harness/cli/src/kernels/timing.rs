//! Times kernels on one shape, `prepare` and `compute` apart, interleaved: what `kernels bench` prints and what dispatch is tuned by.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;
use ternbench_kernels::bytes::Aligned;
use ternbench_kernels::driver::{self, Input, Output, Scratch};
use ternbench_kernels::verify::Random;
use ternbench_kernels::{Bytes, Linear, Pool, TernaryKernel, TernaryMatrix};
use ternbench_measure::{Contender, Plan, interleave, record, stats};

/// Where the weights are when a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Cache {
    /// In memory: each run takes the next of so many copies that all that is read before its turn comes again is twice the last-level
    /// cache, as the layers of a model are.
    Cold,
    /// In the cache, as far as they fit: each run takes the same copy.
    Hot,
}

impl Cache {
    /// As records say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Hot => "hot",
        }
    }
}

/// A matrix packed for one kernel, in as many copies as it takes to be cold.
pub struct Packed {
    pub kernel: &'static dyn TernaryKernel,
    copies: Vec<Linear>,
    pub pack_ns: u64,
}

/// Packs `w` for every kernel, in as many copies as make all of them together, one of which each kernel reads in a round, twice
/// `cache_bytes`: before a copy's turn comes again, as many bytes of others were read.
pub fn pack(kernels: &[&'static dyn TernaryKernel], w: &TernaryMatrix, cache_bytes: u64) -> Vec<Packed> {
    let packed: Vec<_> = kernels
        .iter()
        .map(|&kernel| {
            let start = Instant::now();
            (kernel, Linear::ternary(kernel, w), start.elapsed().as_nanos() as u64)
        })
        .collect();
    let per_round: usize = packed.iter().map(|(_, first, _)| first.held_bytes()).sum();
    let n_copies = 1 + (2 * cache_bytes as usize).div_ceil(per_round.max(1));
    let with_copies = packed.into_iter().map(|(kernel, first, pack_ns)| {
        let mut copies = vec![first; n_copies];
        // In memory of their own each, and on huge pages, as the layers of a model are.
        Bytes::gather(&mut copies.iter_mut().flat_map(Linear::packed_mut).collect::<Vec<_>>());
        Packed { kernel, copies, pack_ns }
    });
    with_copies.collect()
}

impl Packed {
    /// Bytes of one copy.
    pub fn bytes(&self) -> u64 {
        self.copies[0].held_bytes() as u64
    }
}

/// A seeded matrix of the shape.
pub fn random_matrix(n: usize, k: usize) -> Result<TernaryMatrix> {
    let mut random = Random::new(7);
    Ok(TernaryMatrix::new(n, k, (0..n * k).map(|_| random.below(3) as i8 - 1).collect(), 1.0)?)
}

/// What was measured of one kernel.
pub struct Timing {
    pub name: &'static str,
    /// Times of quantising and bringing the input into the kernel's form.
    pub prepare_ns: Vec<u64>,
    /// Times of the multiplication, one per round.
    pub compute: record::Samples,
    /// Of the outputs.
    pub checksum: String,
    pub failed: Option<String>,
}

impl Timing {
    /// Median time of the multiplication.
    pub fn compute_ns(&self) -> f64 {
        median(&self.compute.ns)
    }

    /// Median time of both halves.
    pub fn total_ns(&self) -> f64 {
        self.compute_ns() + median(&self.prepare_ns)
    }
}

/// The median of times, NaN where there are none.
pub fn median(ns: &[u64]) -> f64 {
    stats::median(&ns.iter().map(|&ns| ns as f64).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

/// Runs every kernel on `m` tokens once a round, in a new random order each.
pub fn time(
    packed: &[&Packed],
    [n, k, m]: [usize; 3],
    cache: Cache,
    pool: &Pool,
    repetitions: u32,
    budget: Option<Duration>,
) -> Result<Vec<Timing>> {
    let mut random = Random::new(11);
    // A kernel's time may depend on how many values are large; in a model few are.
    let x: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
    struct State {
        next: usize,
        prepare_ns: Vec<u64>,
        y: Aligned<f32>,
        scratch: Scratch,
    }
    let new_state = |_: &&Packed| {
        let mut y = Aligned::default();
        y.resize(m * n);
        State { next: 0, prepare_ns: Vec::new(), y, scratch: Scratch::default() }
    };
    let mut states: Vec<State> = packed.iter().map(new_state).collect();
    let mut contenders = Vec::with_capacity(packed.len());
    for (state, packed) in states.iter_mut().zip(packed) {
        let (x, copies) = (&x, &packed.copies);
        contenders.push(Contender::new(packed.kernel.info().name, move || {
            let State { next, prepare_ns, y, scratch } = &mut *state;
            let linear = &copies[*next % copies.len()];
            *next += usize::from(cache == Cache::Cold);
            let (prepare, compute) = pool.run(|team| {
                let group = &mut [Output::store(linear, y)];
                let start = Instant::now();
                driver::prepare(team, scratch, Input::Rows(x), m, group);
                let prepared = Instant::now();
                driver::compute(team, scratch, Input::Rows(x), m, group);
                (prepared - start, prepared.elapsed())
            });
            prepare_ns.push(prepare.as_nanos() as u64);
            Ok(compute.as_nanos() as u64)
        }));
    }
    let plan = Plan { repetitions, warmup: 1, budget, ..Plan::default() };
    let outcome = interleave(&mut contenders, &plan, &mut |_| ControlFlow::Continue(()))?;
    drop(contenders);
    let timing = |((series, state), packed): ((ternbench_measure::runner::Series, State), &&Packed)| Timing {
        name: packed.kernel.info().name,
        compute: series.to_samples(m as u64),
        // The warm-up's is dropped.
        prepare_ns: state.prepare_ns.into_iter().skip(1).collect(),
        checksum: format!("{:016x}", state.y.iter().map(|&y| f64::from(y)).sum::<f64>().to_bits()),
        failed: series.failed,
    };
    Ok(outcome.series.into_iter().zip(states).zip(packed).map(timing).collect())
}
