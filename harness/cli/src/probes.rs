//! The limits of this machine, measured in the same run as what is held against them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::Result;
use ternbench_kernels::Pool;
use ternbench_kernels::probe::{self, Arithmetic, Peak};
use ternbench_measure::{Host, record};

/// Bytes that the bandwidth probe reads: four times the last-level cache, but no fewer than 256 MB, and no more than 512, as pages take longer to
/// get than to read. 512 where the cache is not known, which is 0.
fn buffer_bytes(cache_bytes: u64) -> usize {
    let several = if cache_bytes == 0 { u64::MAX } else { cache_bytes.saturating_mul(4) };
    several.clamp(256 << 20, 512 << 20) as usize
}

/// The peaks per number of threads.
pub struct Probes {
    cache_bytes: u64,
    /// Of reading, and of multiply-adds of int8, f32 and bf16, and of trits by tables: none where nothing does that.
    peaks: RefCell<BTreeMap<usize, [Best; 5]>>,
    /// What to write down.
    pub records: Vec<record::Probe>,
}

/// The best sample and what reached it.
#[derive(Clone, Copy, Default)]
struct Best {
    per_s: f64,
    method: &'static str,
}

/// The peak of an arithmetic.
fn peak(peaks: &[Best; 5], arithmetic: Arithmetic) -> Best {
    match arithmetic {
        Arithmetic::Int8 => peaks[1],
        Arithmetic::F32 => peaks[2],
        Arithmetic::Bf16 | Arithmetic::SplitBf16 => peaks[3],
        Arithmetic::Ternary if peaks[4].per_s > peaks[1].per_s => peaks[4],
        Arithmetic::Ternary => peaks[1],
    }
}

impl Probes {
    /// Probes with each pool, for about `seconds` each.
    pub fn measure(host: &Host, pools: &[Pool], seconds: f64) -> Result<Self> {
        let mut probes =
            Self { cache_bytes: host.last_level_cache_bytes(), peaks: RefCell::default(), records: Vec::new() };
        for pool in pools {
            let records = probes.again(pool, seconds);
            probes.records.extend(records);
        }
        Ok(probes)
    }

    /// Probes once more with `pool`, for results above the limits: other work on the machine may have hidden what it can do. The best of
    /// all samples counts.
    pub fn again(&self, pool: &Pool, seconds: f64) -> Vec<record::Probe> {
        let (new, records) = probe_all(pool, buffer_bytes(self.cache_bytes), seconds);
        let mut peaks = self.peaks.borrow_mut();
        let best = peaks.entry(pool.n_threads()).or_default();
        best.iter_mut().zip(new).filter(|(best, new)| new.per_s > best.per_s).for_each(|(best, new)| *best = new);
        records
    }

    /// The limits of an arithmetic on `n_threads`.
    pub fn limits(&self, n_threads: usize, arithmetic: Arithmetic) -> record::Limits {
        let peaks = self.peaks.borrow().get(&n_threads).copied().unwrap_or_default();
        record::Limits {
            bandwidth_bytes_per_s: peaks[0].per_s,
            macs_per_s: peak(&peaks, arithmetic).per_s / arithmetic.products(),
            f32_fmas_per_s: peak(&peaks, Arithmetic::F32).per_s,
            cache_bytes: self.cache_bytes,
        }
    }

    /// Multiply-adds per second right now, in the way that reached the peak.
    pub fn macs_now(&self, pool: &Pool, arithmetic: Arithmetic) -> Option<f64> {
        let method = peak(self.peaks.borrow().get(&pool.n_threads())?, arithmetic).method;
        pool.run(|team| probe::macs_now(team, arithmetic, method))
    }

    /// One line per number of threads.
    pub fn lines(&self) -> Vec<String> {
        let line = |(n, peaks): (&usize, &[Best; 5])| {
            let plural = if *n == 1 { "" } else { "s" };
            let [bandwidth, int8, f32, bf16, tables] = peaks.map(|best| best.per_s / 1e9);
            let where_any = |peak: f64, what| if peak > 0.0 { format!(", {peak:.0} G {what}") } else { String::new() };
            let (tables, bf16) = (where_any(tables, "of trits by tables"), where_any(bf16, "bf16 MAC/s"));
            format!(
                "limits, {n} thread{plural}: {bandwidth:.1} GB/s read, {int8:.0} G int8 MAC/s{tables}, {f32:.0} G f32 FMA/s{bf16}"
            )
        };
        self.peaks.borrow().iter().map(line).collect()
    }
}

/// All probes with one pool: their peaks and their records.
fn probe_all(pool: &Pool, buffer_bytes: usize, seconds: f64) -> ([Best; 5], Vec<record::Probe>) {
    let spinner = crate::console::spinner(&format!("measuring the limits with {} threads", pool.n_threads()));
    let (bandwidth, macs) = pool.run(|team| {
        let bandwidth = probe::read_bandwidth(team, buffer_bytes, seconds / 2.0);
        (bandwidth, probe::mac_peak(team, seconds / 2.0))
    });
    spinner.finish_and_clear();
    let peaks = [Some(&bandwidth), Some(&macs.int8), Some(&macs.f32), macs.bf16.as_ref(), macs.tables.as_ref()];
    let names = [record::Probe::BANDWIDTH, record::Probe::MACS, "f32_fmas", "bf16_macs", "table_macs"];
    let measured = names.into_iter().zip(peaks).filter_map(|(name, peak)| Some((name, peak?)));
    let records = measured.map(|(name, peak)| probe_record(name, peak, pool.n_threads()));
    let best = |peak: &Peak| Best { per_s: peak.per_s, method: peak.method };
    (peaks.map(|peak| peak.map(best).unwrap_or_default()), records.collect())
}

/// The samples of a probe, as times for one unit of a billion.
fn probe_record(name: &str, peak: &Peak, n_threads: usize) -> record::Probe {
    const WORK: u64 = 1_000_000_000;
    record::Probe {
        name: name.to_owned(),
        instructions: peak.method.to_owned(),
        n_threads,
        work_per_sample: WORK,
        samples_ns: peak.samples.iter().map(|per_s| (WORK as f64 * 1e9 / per_s) as u64).collect(),
    }
}
