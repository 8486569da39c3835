//! Records as polars frames: one row per raw sample, grouped and summarised with medians and intervals.

use polars::prelude::*;
use rayon::prelude::*;
use ternbench_measure::Record;
use ternbench_measure::limits;
use ternbench_measure::record::{Body, Kernel, Memory, Speed};
use ternbench_measure::stats::{self, Estimate};

use crate::sums::Sums;

/// What makes two speed samples comparable.
const SPEED_KEYS: [&str; 9] = ["workload", "model", "shape", "weights", "kv", "kernel", "isa", "sums", "n_threads"];
/// What is the same for all of them; the largest is kept.
const SPEED_CARRIED: [&str; 5] =
    ["limit_tokens_per_s", "bytes_per_token", "macs_per_token", "bandwidth_bytes_per_s", "macs_per_s"];
/// What makes two kernel samples comparable.
const KERNEL_KEYS: [&str; 8] = ["kernel", "isa", "sums", "n", "k", "m", "n_threads", "cache"];
/// What is the same for all of them; the largest is kept.
const KERNEL_CARRIED: [&str; 3] = ["packed_bytes", "bandwidth_bytes_per_s", "macs_per_s"];

/// Why records could not be tabulated.
#[derive(Debug, thiserror::Error)]
#[error("records cannot be tabulated: {0}")]
pub struct FrameError(#[from] PolarsError);

/// A speed, summarised.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeedRow {
    /// Workload.
    pub workload: String,
    /// Model as given on the command line.
    pub model: String,
    /// Model by shape, or else as given.
    pub shape: String,
    /// What its linear layers hold.
    pub weights: String,
    /// What the KV cache holds; empty for half precision, and for records older than the choice.
    pub kv: String,
    /// Kernel.
    pub kernel: String,
    /// Instruction set that ran.
    pub isa: String,
    /// What is known of its sums.
    pub sums: Sums,
    /// Threads.
    pub n_threads: u64,
    /// Median tokens per second with its interval.
    pub tokens_per_s: Estimate,
    /// Median absolute deviation.
    pub mad: f64,
    /// The limit, where the probes ran.
    pub limit_tokens_per_s: Option<f64>,
    /// Bytes that must be read per token.
    pub bytes_per_token: f64,
    /// Multiply-adds per token.
    pub macs_per_token: f64,
    /// Measured peak of reading memory, 0 where no probe ran.
    pub bandwidth_bytes_per_s: f64,
    /// Measured peak of multiply-adds, 0 where no probe ran.
    pub macs_per_s: f64,
}

impl SpeedRow {
    /// What was read, see [`held`].
    pub fn held(&self) -> String {
        held(&self.weights, &self.kv)
    }

    /// What its multiply-adds are of: trits in ternary layers, and what kernels of blocks and of halves have in their names.
    pub fn arithmetic(&self) -> &'static str {
        match self.kernel.rsplit('-').next() {
            _ if self.weights == "ternary" => "ternary",
            Some("int8") => "int8",
            // A weight of F16 is two bf16.
            Some("tdpbf16") if self.weights == "f16" => "split bf16",
            Some("dpbf16" | "tdpbf16") => "bf16",
            _ => "f32",
        }
    }

    /// Share of the limit.
    pub fn share_of_limit(&self) -> Option<f64> {
        self.limit_tokens_per_s.map(|limit| self.tokens_per_s.value / limit)
    }
}

/// A kernel on one shape, summarised.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    /// Kernel.
    pub kernel: String,
    /// Instruction set that ran.
    pub isa: String,
    /// What is known of its sums.
    pub sums: Sums,
    /// Output rows.
    pub n: u64,
    /// Inputs.
    pub k: u64,
    /// Tokens.
    pub m: u64,
    /// Threads.
    pub n_threads: u64,
    /// Where the weights were: `hot` or `cold`.
    pub cache: String,
    /// Median time of `compute` with its interval.
    pub compute_ns: Estimate,
    /// Median absolute deviation.
    pub mad: f64,
    /// Bytes of the packed matrix.
    pub packed_bytes: f64,
    /// Measured peak of reading memory, 0 where no probe ran.
    pub bandwidth_bytes_per_s: f64,
    /// Measured peak of multiply-adds, 0 where no probe ran.
    pub macs_per_s: f64,
}

impl KernelRow {
    /// Multiply-adds per second.
    pub fn macs(&self) -> Estimate {
        self.compute_ns.recip().scale((self.n * self.k * self.m) as f64 * 1e9)
    }

    /// Share of the nearer of both limits: reading the matrix once, or its multiply-adds.
    pub fn share_of_limit(&self) -> Option<f64> {
        if self.bandwidth_bytes_per_s <= 0.0 || self.macs_per_s <= 0.0 {
            return None;
        }
        let read = self.packed_bytes / self.compute_ns.value * 1e9 / self.bandwidth_bytes_per_s;
        Some(read.max(self.macs().value / self.macs_per_s))
    }
}

/// The limit of a speed record, in tokens per second.
pub fn limit_of(speed: &Speed) -> Option<f64> {
    limits::limit(speed.work(), speed.limits.into()).map(|limit| limit.tokens_per_s)
}

/// What the KV cache held, where that is to be said: half precision is what speeds are of.
pub fn kv_of(speed: &Speed) -> &str {
    if speed.kv == "f16" { "" } else { &speed.kv }
}

/// What was read: `ternary`, or `ternary, int8 KV`.
pub fn held(weights: &str, kv: &str) -> String {
    if kv.is_empty() { weights.to_owned() } else { format!("{weights}, {kv} KV") }
}

/// Speeds that count, one row per sample.
///
/// # Errors
/// When polars refuses.
pub fn speed_samples(records: &[Record]) -> Result<DataFrame, FrameError> {
    let speeds: Vec<&Speed> = records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Speed(speed) if speed.refused.is_none() => Some(speed),
            _ => None,
        })
        .collect();
    let counts: Vec<usize> = speeds.iter().map(|speed| speed.samples.ns.len()).collect();
    let text = |name: &str, get: &dyn Fn(&Speed) -> String| {
        repeat(name, &counts, &speeds.iter().map(|s| get(s)).collect::<Vec<_>>())
    };
    let number = |name: &str, get: &dyn Fn(&Speed) -> f64| {
        Column::new(name.into(), spread(&counts, speeds.iter().map(|s| get(s))))
    };
    let columns = vec![
        text("workload", &|s| s.workload.clone()),
        text("model", &|s| s.model.model.clone()),
        text("shape", &|s| s.model.shape().unwrap_or(&s.model.model).to_owned()),
        text("weights", &|s| s.model.weights.clone()),
        text("kv", &|s| kv_of(s).to_owned()),
        text("kernel", &|s| s.code.kernel.clone()),
        text("isa", &|s| s.code.isa.clone()),
        text("sums", &|s| Sums::of_speed(s).name().to_owned()),
        Column::new("n_threads".into(), spread(&counts, speeds.iter().map(|s| s.n_threads as u64))),
        Column::new("tokens_per_s".into(), speeds.iter().flat_map(|s| s.samples.tokens_per_s()).collect::<Vec<f64>>()),
        Column::new("limit_tokens_per_s".into(), spread(&counts, speeds.iter().map(|s| limit_of(s)))),
        number("bytes_per_token", &|s| s.bytes_per_token as f64),
        number("macs_per_token", &|s| s.macs_per_token as f64),
        number("bandwidth_bytes_per_s", &|s| s.limits.bandwidth_bytes_per_s),
        number("macs_per_s", &|s| s.limits.macs_per_s),
    ];
    Ok(DataFrame::new(counts.iter().sum(), columns)?)
}

/// Speeds by workload, model, kernel and threads, fastest first within a workload.
///
/// # Errors
/// When polars refuses.
pub fn speed_rows(records: &[Record]) -> Result<Vec<SpeedRow>, FrameError> {
    let summary = summarise(&speed_samples(records)?, &SPEED_KEYS, "tokens_per_s", &SPEED_CARRIED)?;
    let order = SortMultipleOptions::default().with_order_descending_multi([false, true]).with_maintain_order(true);
    let frame = Rows(summary.sort(["workload", "tokens_per_s"], order)?);
    let row = |i: usize| -> PolarsResult<SpeedRow> {
        Ok(SpeedRow {
            workload: frame.text("workload", i)?,
            model: frame.text("model", i)?,
            shape: frame.text("shape", i)?,
            weights: frame.text("weights", i)?,
            kv: frame.text("kv", i)?,
            kernel: frame.text("kernel", i)?,
            isa: frame.text("isa", i)?,
            sums: Sums::named(&frame.text("sums", i)?),
            n_threads: frame.count("n_threads", i)?,
            tokens_per_s: frame.estimate("tokens_per_s", i)?,
            mad: frame.number("mad", i)?,
            limit_tokens_per_s: frame.0.column("limit_tokens_per_s")?.f64()?.get(i),
            bytes_per_token: frame.number("bytes_per_token", i)?,
            macs_per_token: frame.number("macs_per_token", i)?,
            bandwidth_bytes_per_s: frame.number("bandwidth_bytes_per_s", i)?,
            macs_per_s: frame.number("macs_per_s", i)?,
        })
    };
    Ok((0..frame.0.height()).map(row).collect::<PolarsResult<_>>()?)
}

/// Times of `compute` by batch, shape, threads and kernel, fastest first within a shape.
///
/// # Errors
/// When polars refuses.
pub fn kernel_rows(records: &[Record]) -> Result<Vec<KernelRow>, FrameError> {
    let kernels: Vec<&Kernel> = records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Kernel(kernel) if kernel.refused.is_none() => Some(kernel),
            _ => None,
        })
        .collect();
    let counts: Vec<usize> = kernels.iter().map(|kernel| kernel.compute_ns.len()).collect();
    let text = |name: &str, get: &dyn Fn(&Kernel) -> String| {
        repeat(name, &counts, &kernels.iter().map(|k| get(k)).collect::<Vec<_>>())
    };
    let size = |name: &str, get: &dyn Fn(&Kernel) -> usize| {
        Column::new(name.into(), spread(&counts, kernels.iter().map(|k| get(k) as u64)))
    };
    let number = |name: &str, get: &dyn Fn(&Kernel) -> f64| {
        Column::new(name.into(), spread(&counts, kernels.iter().map(|k| get(k))))
    };
    let columns = vec![
        text("kernel", &|k| k.code.kernel.clone()),
        text("isa", &|k| k.code.isa.clone()),
        text("sums", &|k| Sums::of_code(&k.code).name().to_owned()),
        size("n", &|k| k.n),
        size("k", &|k| k.k),
        size("m", &|k| k.m),
        size("n_threads", &|k| k.n_threads),
        text("cache", &|k| k.cache.clone()),
        Column::new(
            "compute_ns".into(),
            kernels.iter().flat_map(|k| k.compute_ns.iter().map(|&ns| ns as f64)).collect::<Vec<f64>>(),
        ),
        number("packed_bytes", &|k| k.packed_bytes as f64),
        number("bandwidth_bytes_per_s", &|k| k.limits.bandwidth_bytes_per_s),
        number("macs_per_s", &|k| k.limits.macs_per_s),
    ];
    let samples = DataFrame::new(counts.iter().sum(), columns)?;
    let summary = summarise(&samples, &KERNEL_KEYS, "compute_ns", &KERNEL_CARRIED)?;
    let frame = Rows(summary.sort(["m", "n", "k", "n_threads", "compute_ns"], SortMultipleOptions::default())?);
    let row = |i: usize| -> PolarsResult<KernelRow> {
        Ok(KernelRow {
            kernel: frame.text("kernel", i)?,
            isa: frame.text("isa", i)?,
            sums: Sums::named(&frame.text("sums", i)?),
            n: frame.count("n", i)?,
            k: frame.count("k", i)?,
            m: frame.count("m", i)?,
            n_threads: frame.count("n_threads", i)?,
            cache: frame.text("cache", i)?,
            compute_ns: frame.estimate("compute_ns", i)?,
            mad: frame.number("mad", i)?,
            packed_bytes: frame.number("packed_bytes", i)?,
            bandwidth_bytes_per_s: frame.number("bandwidth_bytes_per_s", i)?,
            macs_per_s: frame.number("macs_per_s", i)?,
        })
    };
    Ok((0..frame.0.height()).map(row).collect::<PolarsResult<_>>()?)
}

/// Typed access to a summary.
struct Rows(DataFrame);

impl Rows {
    fn text(&self, name: &str, i: usize) -> PolarsResult<String> {
        Ok(self.0.column(name)?.str()?.get(i).unwrap_or_default().to_owned())
    }

    fn number(&self, name: &str, i: usize) -> PolarsResult<f64> {
        Ok(self.0.column(name)?.f64()?.get(i).unwrap_or(f64::NAN))
    }

    fn count(&self, name: &str, i: usize) -> PolarsResult<u64> {
        Ok(self.0.column(name)?.u64()?.get(i).unwrap_or(0))
    }

    fn estimate(&self, name: &str, i: usize) -> PolarsResult<Estimate> {
        let n = self.count("samples", i)? as usize;
        Ok(Estimate { value: self.number(name, i)?, low: self.number("low", i)?, high: self.number("high", i)?, n })
    }
}

/// Memory, least peak first.
pub fn memory_rows(records: &[Record]) -> Vec<&Memory> {
    let memory = |record| match record {
        &Record { body: Body::Memory(ref memory), .. } => Some(memory),
        _ => None,
    };
    let mut rows: Vec<&Memory> = records.iter().filter_map(memory).collect();
    rows.sort_by_key(|memory| memory.peak_rss_bytes);
    rows
}

/// One row per group of `keys`, in order of first appearance, with `samples`, the median of `value` under its own name,
/// `mad`, `low`, `high`, and the largest of each of `carried`.
fn summarise(samples: &DataFrame, keys: &[&str], value: &str, carried: &[&str]) -> Result<DataFrame, FrameError> {
    if samples.height() == 0 {
        // polars groups no empty frame: the same columns, without rows.
        let mut columns: Vec<Column> =
            keys.iter().map(|key| samples.column(key).cloned()).collect::<PolarsResult<_>>()?;
        columns.push(Column::new("samples".into(), Vec::<u64>::new()));
        columns.extend(
            [value, "mad", "low", "high"]
                .into_iter()
                .chain(carried.iter().copied())
                .map(|name| Column::new(name.into(), Vec::<f64>::new())),
        );
        return Ok(DataFrame::new(0, columns)?);
    }
    let mut values: Vec<Vec<f64>> = Vec::new();
    let groups = samples.group_by_stable(keys.iter().copied())?.apply(|group| {
        values.push(group.column(value)?.f64()?.iter().flatten().collect());
        let mut columns: Vec<Column> =
            keys.iter().map(|key| Ok(group.column(key)?.slice(0, 1))).collect::<PolarsResult<_>>()?;
        for name in carried {
            let largest = group.column(name)?.f64()?.iter().flatten().max_by(f64::total_cmp);
            columns.push(Column::new((*name).into(), [largest]));
        }
        DataFrame::new(1, columns)
    })?;
    let nothing = Estimate { value: f64::NAN, low: f64::NAN, high: f64::NAN, n: 0 };
    let estimates: Vec<Estimate> = values.par_iter().map(|of| stats::median_interval(of).unwrap_or(nothing)).collect();
    let number = |name: &str, get: &dyn Fn(&Estimate) -> f64| {
        Column::new(name.into(), estimates.iter().map(get).collect::<Vec<f64>>())
    };
    let mads: Vec<f64> = values.iter().map(|of| stats::mad(of).unwrap_or(f64::NAN)).collect();
    Ok(groups.hstack(&[
        Column::new("samples".into(), estimates.iter().map(|estimate| estimate.n as u64).collect::<Vec<_>>()),
        number(value, &|estimate| estimate.value),
        Column::new("mad".into(), mads),
        number("low", &|estimate| estimate.low),
        number("high", &|estimate| estimate.high),
    ])?)
}

/// `values[i]` `counts[i]` times.
fn spread<T: Clone>(counts: &[usize], values: impl Iterator<Item = T>) -> Vec<T> {
    counts.iter().zip(values).flat_map(|(&count, value)| std::iter::repeat_n(value, count)).collect()
}

fn repeat(name: &str, counts: &[usize], values: &[String]) -> Column {
    Column::new(name.into(), spread(counts, values.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::test_records as make;

    #[test]
    fn samples_of_several_groups_are_summarised_together() {
        let a = make::speed("synthetic:a", "ternary", 2, "g1", &[10.0, 12.0, 11.0]);
        let b = make::speed("synthetic:a", "ternary", 2, "g2", &[14.0, 13.0]);
        let slow = make::speed("synthetic:b", "f16", 2, "g1", &[4.0, 5.0, 6.0]);
        let mut refused = make::speed("synthetic:c", "ternary", 2, "g1", &[1e6]);
        refused.refused = Some("impossible".into());
        let mut rounded = make::speed("synthetic:a", "ternary", 2, "g1", &[3.0]);
        rounded.kv = "int8".into();
        let records = make::records([a.into(), b.into(), slow.into(), refused.into(), rounded.into()]);
        let rows = speed_rows(&records).expect("rows");
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[2].held().as_str(), rows[2].tokens_per_s.n), ("ternary, int8 KV", 1));
        assert_eq!((rows[0].held().as_str(), rows[2].arithmetic()), ("ternary", "ternary"));
        for (weights, kernel, expected) in [
            ("q8_0", "avx512vnni-q8_0-int8", "int8"),
            ("f16", "avx512f-f16-fma", "f32"),
            ("bf16", "avx512bf16-bf16-dpbf16", "bf16"),
            ("bf16", "amx-bf16-tdpbf16", "bf16"),
            ("f16", "amx-f16-tdpbf16", "split bf16"),
        ] {
            let row = SpeedRow { weights: weights.into(), kernel: kernel.into(), ..rows[0].clone() };
            assert_eq!(row.arithmetic(), expected, "{kernel}");
        }
        assert_eq!((rows[0].shape.as_str(), rows[0].tokens_per_s.n), ("a", 5));
        assert!((rows[0].tokens_per_s.value - 12.0).abs() < 1e-6 && (rows[0].mad - 1.0).abs() < 1e-6, "{:?}", rows[0]);
        assert!((rows[1].tokens_per_s.value - 5.0).abs() < 1e-6);
    }

    #[test]
    fn nothing_gives_empty_tables() {
        assert_eq!(speed_rows(&[]).expect("rows"), []);
        assert_eq!(kernel_rows(&[]).expect("rows"), []);
        assert_eq!(memory_rows(&[]).len(), 0);
    }

    #[test]
    fn kernels_are_summarised_by_shape() {
        let made = make::records([
            make::kernel("a", 10, 100, 1, &[30, 10, 20]).into(),
            make::kernel("b", 10, 100, 1, &[5; 3]).into(),
            make::kernel("a", 20, 100, 1, &[7; 3]).into(),
        ]);
        let rows = kernel_rows(&made).expect("rows");
        let shown: Vec<(&str, u64, f64)> = rows.iter().map(|r| (r.kernel.as_str(), r.n, r.compute_ns.value)).collect();
        assert_eq!(shown, [("b", 10, 5.0), ("a", 10, 20.0), ("a", 20, 7.0)]);
        // 1000 multiply-adds in 20 ns; 250 bytes in 20 ns are 12.5 GB/s of 33.
        assert!((rows[1].macs().value - 50e9).abs() < 1.0);
        assert!((rows[1].share_of_limit().expect("probes") - 12.5 / 33.0).abs() < 1e-9, "{:?}", rows[1]);
    }

    #[test]
    fn a_hundred_thousand_samples_are_summarised() {
        let speeds: Vec<f64> = (0..10_000).map(|i| 10.0 + f64::from(i % 97) / 97.0).collect();
        let bodies = (0..10).map(|i| make::speed(&format!("synthetic:{i}"), "ternary", 2, "g", &speeds).into());
        let records = make::records(bodies);
        assert_eq!(speed_rows(&records).expect("rows").len(), 10);
    }
}
