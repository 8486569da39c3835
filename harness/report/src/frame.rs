//! Records as polars frames: one row per raw sample, grouped and summarised with medians and intervals.

use polars::prelude::*;
use ternbench_measure::Record;
use ternbench_measure::limits;
use ternbench_measure::record::{Body, Memory, Speed};
use ternbench_measure::stats::{self, Estimate};

/// What makes two speed samples comparable.
const SPEED_KEYS: [&str; 8] = ["workload", "model", "shape", "weights", "kernel", "isa", "exact", "n_threads"];
/// What makes two kernel samples comparable.
const KERNEL_KEYS: [&str; 7] = ["kernel", "isa", "n", "k", "m", "n_threads", "cache"];

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
    /// Kernel.
    pub kernel: String,
    /// Instruction set that ran.
    pub isa: String,
    /// Whether the kernel is exact.
    pub exact: bool,
    /// Threads.
    pub n_threads: u64,
    /// Median tokens per second with its interval.
    pub tokens_per_s: Estimate,
    /// Median absolute deviation.
    pub mad: f64,
    /// The limit, where the probes ran.
    pub limit_tokens_per_s: Option<f64>,
}

impl SpeedRow {
    /// Share of the limit.
    pub fn share_of_limit(&self) -> Option<f64> {
        self.limit_tokens_per_s.map(|limit| self.tokens_per_s.value / limit)
    }
}

/// The limit of a speed record, in tokens per second.
pub fn limit_of(speed: &Speed) -> Option<f64> {
    limits::limit(speed.work(), speed.limits.into()).map(|limit| limit.tokens_per_s)
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
    let limit = |speed: &&Speed| limit_of(speed);
    let columns = vec![
        text("workload", &|s| s.workload.clone()),
        text("model", &|s| s.model.model.clone()),
        text("shape", &|s| s.model.shape().unwrap_or(&s.model.model).to_owned()),
        text("weights", &|s| s.model.weights.clone()),
        text("kernel", &|s| s.code.kernel.clone()),
        text("isa", &|s| s.code.isa.clone()),
        Column::new("exact".into(), spread(&counts, speeds.iter().map(|s| s.code.exact))),
        Column::new("n_threads".into(), spread(&counts, speeds.iter().map(|s| s.n_threads as u64))),
        text("group", &|s| s.group.clone()),
        Column::new("ns".into(), speeds.iter().flat_map(|s| s.samples.ns.iter().copied()).collect::<Vec<u64>>()),
        Column::new("tokens_per_s".into(), speeds.iter().flat_map(|s| s.samples.tokens_per_s()).collect::<Vec<f64>>()),
        Column::new("limit_tokens_per_s".into(), spread(&counts, speeds.iter().map(limit))),
    ];
    Ok(DataFrame::new(counts.iter().sum(), columns)?)
}

/// Speeds by workload, model, kernel and threads: n, median, MAD, interval, limit. Fastest first within a workload.
///
/// # Errors
/// When polars refuses.
pub fn speed_summary(records: &[Record]) -> Result<DataFrame, FrameError> {
    let summary = summarise(&speed_samples(records)?, &SPEED_KEYS, "tokens_per_s", Some("limit_tokens_per_s"))?;
    let order = SortMultipleOptions::default().with_order_descending_multi([false, true]).with_maintain_order(true);
    Ok(summary.sort(["workload", "tokens_per_s"], order)?)
}

/// The summary as typed rows.
///
/// # Errors
/// When polars refuses.
pub fn speed_rows(records: &[Record]) -> Result<Vec<SpeedRow>, FrameError> {
    let frame = speed_summary(records)?;
    let text = |name: &str, i: usize| -> PolarsResult<String> {
        Ok(frame.column(name)?.str()?.get(i).unwrap_or_default().to_owned())
    };
    let number = |name: &str, i: usize| -> PolarsResult<Option<f64>> { Ok(frame.column(name)?.f64()?.get(i)) };
    let count = |name: &str, i: usize| -> PolarsResult<u64> { Ok(frame.column(name)?.u64()?.get(i).unwrap_or(0)) };
    let row = |i: usize| -> PolarsResult<SpeedRow> {
        let value = |name| -> PolarsResult<f64> { Ok(number(name, i)?.unwrap_or(f64::NAN)) };
        Ok(SpeedRow {
            workload: text("workload", i)?,
            model: text("model", i)?,
            shape: text("shape", i)?,
            weights: text("weights", i)?,
            kernel: text("kernel", i)?,
            isa: text("isa", i)?,
            exact: frame.column("exact")?.bool()?.get(i).unwrap_or(false),
            n_threads: count("n_threads", i)?,
            tokens_per_s: Estimate {
                value: value("tokens_per_s")?,
                low: value("low")?,
                high: value("high")?,
                n: count("samples", i)? as usize,
            },
            mad: value("mad")?,
            limit_tokens_per_s: number("limit_tokens_per_s", i)?,
        })
    };
    Ok((0..frame.height()).map(row).collect::<PolarsResult<_>>()?)
}

/// Kernel times by shape: n, median, MAD and interval of `compute`, in nanoseconds.
///
/// # Errors
/// When polars refuses.
pub fn kernel_summary(records: &[Record]) -> Result<DataFrame, FrameError> {
    let kernels: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Kernel(kernel) if kernel.refused.is_none() => Some(kernel),
            _ => None,
        })
        .collect();
    let counts: Vec<usize> = kernels.iter().map(|kernel| kernel.compute_ns.len()).collect();
    let size = |name: &str, sizes: Vec<usize>| {
        Column::new(name.into(), spread(&counts, sizes.into_iter().map(|size| size as u64)))
    };
    let columns = vec![
        repeat("kernel", &counts, &kernels.iter().map(|k| k.code.kernel.clone()).collect::<Vec<_>>()),
        repeat("isa", &counts, &kernels.iter().map(|k| k.code.isa.clone()).collect::<Vec<_>>()),
        size("n", kernels.iter().map(|k| k.n).collect()),
        size("k", kernels.iter().map(|k| k.k).collect()),
        size("m", kernels.iter().map(|k| k.m).collect()),
        size("n_threads", kernels.iter().map(|k| k.n_threads).collect()),
        repeat("cache", &counts, &kernels.iter().map(|k| k.cache.clone()).collect::<Vec<_>>()),
        Column::new(
            "compute_ns".into(),
            kernels.iter().flat_map(|k| k.compute_ns.iter().map(|&ns| ns as f64)).collect::<Vec<f64>>(),
        ),
    ];
    let samples = DataFrame::new(counts.iter().sum(), columns)?;
    let summary = summarise(&samples, &KERNEL_KEYS, "compute_ns", None)?;
    Ok(summary.sort(["m", "n", "k", "n_threads", "compute_ns"], SortMultipleOptions::default())?)
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
/// `mad`, `low`, `high`, and the largest of `carry`.
fn summarise(samples: &DataFrame, keys: &[&str], value: &str, carry: Option<&str>) -> Result<DataFrame, FrameError> {
    let one = |group: &DataFrame| -> PolarsResult<DataFrame> {
        let values: Vec<f64> = group.column(value)?.f64()?.iter().flatten().collect();
        let estimate = stats::median_interval(&values, stats::SEED).unwrap_or(Estimate {
            value: f64::NAN,
            low: f64::NAN,
            high: f64::NAN,
            n: 0,
        });
        let mut columns: Vec<Column> =
            keys.iter().map(|key| Ok(group.column(key)?.slice(0, 1))).collect::<PolarsResult<_>>()?;
        columns.push(Column::new("samples".into(), [values.len() as u64]));
        columns.push(Column::new(value.into(), [estimate.value]));
        columns.push(Column::new("mad".into(), [stats::mad(&values).unwrap_or(f64::NAN)]));
        columns.push(Column::new("low".into(), [estimate.low]));
        columns.push(Column::new("high".into(), [estimate.high]));
        if let Some(carry) = carry {
            let largest = group.column(carry)?.f64()?.iter().flatten().max_by(f64::total_cmp);
            columns.push(Column::new(carry.into(), [largest]));
        }
        DataFrame::new(1, columns)
    };
    if samples.height() == 0 {
        // polars groups no empty frame: the same columns, without rows.
        let mut columns: Vec<Column> =
            keys.iter().map(|key| samples.column(key).cloned()).collect::<PolarsResult<_>>()?;
        columns.push(Column::new("samples".into(), Vec::<u64>::new()));
        columns.extend(
            [value, "mad", "low", "high"]
                .into_iter()
                .chain(carry)
                .map(|name| Column::new(name.into(), Vec::<f64>::new())),
        );
        return Ok(DataFrame::new(0, columns)?);
    }
    Ok(samples.group_by_stable(keys.iter().copied())?.apply(|group| one(&group))?)
}

/// A frame as CSV, with quotes where they are needed.
pub fn to_csv(frame: &DataFrame) -> String {
    let field = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let value = |value: AnyValue<'_>| match value {
        AnyValue::Null => String::new(),
        AnyValue::String(text) => field(text),
        AnyValue::Float64(number) => number.to_string(),
        AnyValue::UInt64(number) => number.to_string(),
        AnyValue::Boolean(yes) => yes.to_string(),
        other => field(&other.to_string()),
    };
    let mut csv = frame.get_column_names().iter().map(|name| field(name)).collect::<Vec<_>>().join(",");
    csv.push('\n');
    for i in 0..frame.height() {
        let row: Vec<String> =
            frame.columns().iter().map(|column| column.get(i).map(value).unwrap_or_default()).collect();
        csv.push_str(&row.join(","));
        csv.push('\n');
    }
    csv
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
        let records = make::records([a.into(), b.into(), slow.into(), refused.into()]);
        let rows = speed_rows(&records).expect("rows");
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].shape.as_str(), rows[0].tokens_per_s.n), ("a", 5));
        assert!((rows[0].tokens_per_s.value - 12.0).abs() < 1e-6 && (rows[0].mad - 1.0).abs() < 1e-6, "{:?}", rows[0]);
        assert!((rows[1].tokens_per_s.value - 5.0).abs() < 1e-6);
        let csv = to_csv(&speed_summary(&records).expect("summary"));
        assert!(csv.starts_with("workload,model,shape,weights,kernel,isa,exact,n_threads,samples,tokens_per_s,mad,low,high,limit_tokens_per_s\n"), "{csv}");
        assert_eq!(csv.lines().count(), 3);
    }

    #[test]
    fn nothing_gives_empty_tables() {
        assert_eq!(speed_rows(&[]).expect("rows"), []);
        assert_eq!(kernel_summary(&[]).expect("rows").height(), 0);
        assert_eq!(memory_rows(&[]).len(), 0);
    }

    #[test]
    fn csv_quotes_what_it_must() {
        let frame = DataFrame::new(2, vec![Column::new("a,b".into(), ["x\"y", "z"])]).expect("frame");
        assert_eq!(to_csv(&frame), "\"a,b\"\n\"x\"\"y\"\nz\n");
    }

    #[test]
    fn a_hundred_thousand_samples_are_quick() {
        let speeds: Vec<f64> = (0..10_000).map(|i| 10.0 + f64::from(i % 97) / 97.0).collect();
        let bodies = (0..10).map(|i| make::speed(&format!("synthetic:{i}"), "ternary", 2, "g", &speeds).into());
        let records = make::records(bodies);
        let start = std::time::Instant::now();
        assert_eq!(speed_rows(&records).expect("rows").len(), 10);
        // The promise is 5 s; this leaves room for a busy machine and catches a square.
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
