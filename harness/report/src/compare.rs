//! Comparing what was timed: within a run (`cmp`), between runs (`diff`, `check`), and how much of a difference is noise.
//!
//! Everything timed is a [`Series`] of rates, so that more is always better: tokens per second of a model, or multiply-adds per
//! nanosecond of a kernel on one matrix.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use ternbench_measure::Record;
use ternbench_measure::record::{Body, Kernel, Model, Speed};
use ternbench_measure::stats::{self, Compared, Estimate};

use crate::catalogue::Catalogue;
use crate::frame::{held, kv_of};
use crate::sums::Sums;
use crate::table::{Column, Kind, Table, Value, column};

/// What was timed. Two series with the same contender can be compared between runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contender {
    /// `tg128`, or `2560x6912 m1 cold` for a kernel on its own.
    pub workload: String,
    /// The model as given on the command line; empty for a kernel on its own.
    pub model: String,
    /// What its linear layers hold, and the KV cache if not half precision; empty for a kernel on its own.
    pub weights: String,
    /// The kernel.
    pub kernel: String,
    /// What is known of its sums.
    pub sums: Sums,
    /// Threads.
    pub n_threads: usize,
}

impl Contender {
    /// The model's title.
    pub fn model_title(&self) -> &str {
        let named = Model { model: self.model.clone(), ..Model::default() };
        let shape = named.shape().map(str::to_owned);
        let catalogue = Catalogue::get();
        catalogue
            .models
            .iter()
            .find(|model| Some(&model.id) == shape.as_ref())
            .map_or(&self.model, |model| &model.title)
    }

    /// `BitNet b1.58 2B4T ternary, avx2-i2s-maddubs, 2 threads`, without what `other` shares.
    fn apart_from(&self, other: &Self) -> String {
        let threads = format!("{} thread{}", self.n_threads, if self.n_threads == 1 { "" } else { "s" });
        let mut parts = Vec::new();
        if (&self.model, &self.weights) != (&other.model, &other.weights) {
            parts.push(format!("{} {}", self.model_title(), self.weights));
        }
        if self.kernel != other.kernel {
            parts.push(self.sums.mark(&self.kernel));
        }
        if self.n_threads != other.n_threads {
            parts.push(threads);
        }
        if parts.is_empty() { "itself".into() } else { parts.join(", ") }
    }

    fn values(&self) -> Vec<Value> {
        let model =
            if self.model.is_empty() { "–".to_owned() } else { format!("{} {}", self.model_title(), self.weights) };
        vec![
            self.workload.clone().into(),
            model.into(),
            self.model.clone().into(),
            self.weights.clone().into(),
            self.sums.mark(&self.kernel).into(),
            self.n_threads.into(),
        ]
    }
}

const CONTENDER_COLUMNS: [Column; 6] = [
    column("workload", "workload", Kind::Text),
    column("title", "model", Kind::Text),
    column("model", "", Kind::Text),
    column("weights", "", Kind::Text),
    column("kernel", "kernel", Kind::Text),
    column("n_threads", "threads", Kind::Count),
];

/// The samples of one contender in one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What was timed.
    pub contender: Contender,
    /// Run and group: samples of one group and round are pairs.
    pub group: (String, String),
    /// Matrix of a kernel on its own: output rows, inputs, tokens, and where its weights were.
    pub matrix: Option<(usize, usize, usize, String)>,
    /// Round of each sample; empty where none was recorded.
    pub rounds: Vec<u32>,
    /// Tokens per second, or multiply-adds per nanosecond.
    pub rates: Vec<f64>,
}

impl Series {
    /// Every series that counts: what was refused does not.
    pub fn all(records: &[Record]) -> Vec<Self> {
        let series = records.iter().filter_map(|record| match &record.body {
            Body::Speed(speed) if speed.refused.is_none() => Some(Self::of_speed(record, speed)),
            Body::Kernel(kernel) if kernel.refused.is_none() => Some(Self::of_kernel(record, kernel)),
            _ => None,
        });
        series.filter(|series| !series.rates.is_empty()).collect()
    }

    fn of_speed(record: &Record, speed: &Speed) -> Self {
        let contender = Contender {
            workload: speed.workload.clone(),
            model: speed.model.model.clone(),
            weights: held(&speed.model.weights, kv_of(speed)),
            kernel: speed.code.kernel.clone(),
            sums: Sums::of_speed(speed),
            n_threads: speed.n_threads,
        };
        let group = (record.run_id.clone(), speed.group.clone());
        let samples = &speed.samples;
        Self { contender, group, matrix: None, rounds: samples.rounds.clone(), rates: samples.tokens_per_s() }
    }

    fn of_kernel(record: &Record, kernel: &Kernel) -> Self {
        let Kernel { n, k, m, cache, .. } = kernel;
        let contender = Contender {
            workload: format!("{n}x{k} m{m} {cache}"),
            model: String::new(),
            weights: String::new(),
            kernel: kernel.code.kernel.clone(),
            sums: Sums::of_code(&kernel.code),
            n_threads: kernel.n_threads,
        };
        let macs = (n * k * m) as f64;
        Self {
            contender,
            group: (record.run_id.clone(), kernel.group.clone()),
            matrix: Some((*n, *k, *m, cache.clone())),
            rounds: kernel.samples_round.clone(),
            rates: kernel.compute_ns.iter().filter(|&&ns| ns > 0).map(|&ns| macs / ns as f64).collect(),
        }
    }

    /// This series beside another: paired where both are of one group and share rounds.
    pub fn beside(&self, other: &Self) -> Compared {
        if self.group == other.group {
            let pairs = pairs(&self.rounds, &self.rates, &other.rounds, &other.rates);
            if !pairs.is_empty() {
                return Compared::Paired(pairs);
            }
        }
        Compared::Unpaired(self.rates.clone(), other.rates.clone())
    }
}

/// Samples of the same round.
pub(crate) fn pairs(a_rounds: &[u32], a: &[f64], b_rounds: &[u32], b: &[f64]) -> Vec<(f64, f64)> {
    let by_round: HashMap<u32, f64> = b_rounds.iter().copied().zip(b.iter().copied()).collect();
    a_rounds.iter().zip(a).filter_map(|(round, value)| Some((*value, *by_round.get(round)?))).collect()
}

/// Two contenders of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The one whose ratio is shown.
    pub left: Contender,
    /// The one it is held against.
    pub right: Contender,
    /// Speed of the left over that of the right.
    pub ratio: Estimate,
    /// Whether samples were paired.
    pub paired: bool,
}

/// What the contenders of a pair may differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Anything.
    Any,
    /// Only the kernel.
    Kernel,
    /// Only the model or what its weights are.
    Model,
    /// Only the number of threads.
    Threads,
}

impl By {
    fn allows(self, a: &Contender, b: &Contender) -> bool {
        let model = (&a.model, &a.weights) != (&b.model, &b.weights);
        let (kernel, threads) = (a.kernel != b.kernel, a.n_threads != b.n_threads);
        match self {
            Self::Any => true,
            Self::Kernel => kernel && !model && !threads,
            // Weights decide which kernel runs.
            Self::Model => model && !threads,
            Self::Threads => threads && !model && !kernel,
        }
    }
}

/// Compares the contenders of every group with the group's `base`: those whose model or kernel contains it, or else the fastest.
/// Only samples of one group, and so of one run and workload, are compared.
pub fn cmp(records: &[Record], by: By, base: Option<&str>) -> Vec<Pair> {
    type Key<'a> = (&'a (String, String), &'a str);
    let mut groups: BTreeMap<Key<'_>, Vec<(f64, &Series)>> = BTreeMap::new();
    let all = Series::all(records);
    for series in &all {
        let median = stats::median(&series.rates).unwrap_or(0.0);
        groups.entry((&series.group, &series.contender.workload)).or_default().push((median, series));
    }
    let mut chosen: Vec<(&Series, &Series)> = Vec::new();
    for members in groups.values() {
        for &(speed, left) in members {
            let others = members.iter().filter(|(_, right)| right.contender != left.contender);
            let comparable = others.filter(|(_, right)| by.allows(&left.contender, &right.contender));
            let right = comparable.filter(|(other, right)| match base {
                Some(base) => right.contender.model.contains(base) || right.contender.kernel.contains(base),
                // Of two equally fast ones, one is compared with the other.
                None => (*other, &right.contender) > (speed, &left.contender),
            });
            chosen.extend(right.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, right)| (left, *right)));
        }
    }
    let pair = |&(left, right): &(&Series, &Series)| {
        let compared = left.beside(right);
        let paired = matches!(compared, Compared::Paired(_));
        let ratio = compared.interval(stats::SEED)?;
        Some(Pair { left: left.contender.clone(), right: right.contender.clone(), ratio, paired })
    };
    let mut found: Vec<Pair> = chosen.par_iter().filter_map(pair).collect();
    found.sort_by(|a, b| {
        (&a.left.workload, &a.right).cmp(&(&b.left.workload, &b.right)).then(b.ratio.value.total_cmp(&a.ratio.value))
    });
    found
}

/// Pairs as a table.
pub fn cmp_table(pairs: &[Pair]) -> Table {
    let columns = [
        CONTENDER_COLUMNS.as_slice(),
        &[
            column("ratio", "speed", Kind::Ratio),
            column("against", "of that of", Kind::Text),
            column("pairing", "samples", Kind::Text),
        ],
    ];
    Table::new(columns.concat()).with_rows(pairs.iter().map(|pair| {
        let mut row = pair.left.values();
        let pairing = if pair.paired { "paired" } else { "unpaired" };
        row.extend([pair.ratio.into(), pair.right.apart_from(&pair.left).into(), pairing.into()]);
        row
    }))
}

/// How much of a difference is noise, as a share (0.02 for 2 %): what the A/A runs of these records show at worst. `None` without
/// an A/A run: what is not measured is not guessed.
pub fn noise_floor(records: &[Record]) -> Option<f64> {
    let floors = records.iter().filter_map(|record| match &record.body {
        Body::Noise(noise) => noise.floor(),
        _ => None,
    });
    floors.reduce(f64::max)
}

/// What became of a contender between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Surely faster, by more than the noise floor.
    Faster,
    /// Surely slower, by more than the noise floor.
    Slower,
    /// No more than noise.
    Same,
    /// Only the first run has it.
    Gone,
    /// Only the second run has it.
    New,
}

impl Change {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Same => "no change beyond noise",
            Self::Gone => "gone",
            Self::New => "new",
        }
    }

    /// Real is what the interval keeps away from 1 and what is larger than the noise floor.
    fn of(ratio: Estimate, floor: f64) -> Self {
        let beyond = ratio.value.max(1.0 / ratio.value) - 1.0 > floor;
        match (beyond, ratio.low > 1.0, ratio.high < 1.0) {
            (true, true, _) => Self::Faster,
            (true, _, true) => Self::Slower,
            _ => Self::Same,
        }
    }
}

/// One contender in two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The contender.
    pub contender: Contender,
    /// Its rate in the first run.
    pub before: Option<Estimate>,
    /// Its rate in the second run.
    pub after: Option<Estimate>,
    /// Second over first.
    pub ratio: Option<Estimate>,
    /// What that means.
    pub change: Change,
}

/// Compares every contender of two runs. All samples of a contender count together, whatever group they are of; the runs were made
/// at different times, so nothing is paired. `floor` is a share.
pub fn diff(before: &[Record], after: &[Record], floor: f64) -> Vec<Difference> {
    let rates = |records: &[Record]| {
        let mut by_contender: BTreeMap<Contender, Vec<f64>> = BTreeMap::new();
        for series in Series::all(records) {
            by_contender.entry(series.contender).or_default().extend(series.rates);
        }
        by_contender
    };
    let (a, b) = (rates(before), rates(after));
    let contenders: std::collections::BTreeSet<&Contender> = a.keys().chain(b.keys()).collect();
    let estimate = |rates: Option<&Vec<f64>>| stats::median_interval(rates?);
    let one = |contender: &Contender| {
        let (x, y) = (a.get(contender), b.get(contender));
        let ratio = x.zip(y).and_then(|(x, y)| Compared::Unpaired(y.clone(), x.clone()).interval(stats::SEED));
        let change = match (x, y, ratio) {
            (_, _, Some(ratio)) => Change::of(ratio, floor),
            (Some(_), None, _) => Change::Gone,
            (None, Some(_), _) => Change::New,
            _ => Change::Same,
        };
        Difference { contender: contender.clone(), before: estimate(x), after: estimate(y), ratio, change }
    };
    contenders.into_iter().map(one).collect()
}

/// Differences as a table.
pub fn diff_table(differences: &[Difference]) -> Table {
    let columns = [
        CONTENDER_COLUMNS.as_slice(),
        &[
            column("rate_before", "before", Kind::Estimate),
            column("rate_after", "after", Kind::Estimate),
            column("ratio", "after / before", Kind::Ratio),
            column("change", "change", Kind::Text),
        ],
    ];
    Table::new(columns.concat()).with_rows(differences.iter().map(|difference| {
        let mut row = difference.contender.values();
        let Difference { before, after, ratio, change, .. } = *difference;
        row.extend([before.into(), after.into(), ratio.into(), change.name().into()]);
        row
    }))
}

#[cfg(test)]
mod tests {
    use ternbench_measure::record::Noise;

    use super::*;
    use crate::claims::test_records::{records, speed};

    const BITNET: &str = "synthetic:bitnet-2b4t";

    #[test]
    fn contenders_of_a_group_are_paired_with_its_fastest() {
        let noise = [1.0, 2.0, 0.5, 1.1, 0.9];
        let fast = speed(BITNET, "ternary", 2, "g", &noise.map(|x| 20.0 * x));
        let slow = speed("synthetic:llama-3.2-1b", "f16", 2, "g", &noise.map(|x| 10.0 * x));
        let elsewhere = speed(BITNET, "ternary", 2, "h", &[1.0; 5]);
        let made = records([fast.into(), slow.into(), elsewhere.into()]);
        let found = cmp(&made, By::Any, None);
        assert_eq!(found.len(), 1);
        assert!(found[0].paired && (found[0].ratio.value - 0.5).abs() < 1e-6, "{found:?}");
        assert!((found[0].ratio.low - 0.5).abs() < 1e-6, "pairs cancel the noise of a round: {found:?}");
        let against = cmp(&made, By::Model, Some("llama"));
        assert!(against.len() == 1 && (against[0].ratio.value - 2.0).abs() < 1e-6, "{against:?}");
        assert_eq!(cmp(&made, By::Threads, None), []);
        assert_eq!(cmp(&made, By::Kernel, None), []);
        let text = cmp_table(&against).markdown();
        assert!(text.contains("| 2.00x | 2.00 to 2.00 | 5 | Llama 3.2 1B f16, avx2-f16-fma | paired |"), "{text}");
    }

    #[test]
    fn the_noise_floor_is_that_of_the_worst_a_a_run() {
        let one = |group: &str, rate: f64| Body::from(speed(BITNET, "ternary", 2, group, &[rate; 5]));
        let groups = || [one("g", 10.0), one("h", 10.3), one("i", 9.9)];
        assert_eq!(noise_floor(&records(groups())), None, "groups are no A/A run");
        let noise = |first_ns| Noise { first_ns, second_ns: vec![100; 5], ..Noise::default() };
        let quiet = noise(vec![100, 100, 100, 100, 101]);
        let worse = noise(vec![98, 100, 100, 101, 101]);
        let floor = noise_floor(&records(groups().into_iter().chain([worse.into(), quiet.into()]))).expect("A/A runs");
        assert!((floor - 0.02).abs() < 1e-6, "{floor}");
    }

    #[test]
    fn a_change_is_real_beyond_interval_and_floor() {
        let run = |rates: &[f64]| records([speed(BITNET, "ternary", 2, "g", rates).into()]);
        let before = run(&[10.0, 10.1, 9.9, 10.05, 9.95]);
        let change = |after: &[f64], floor| diff(&before, &run(after), floor)[0].change;
        assert_eq!(change(&[11.0, 11.1, 10.9, 11.05, 10.95], 0.02), Change::Faster);
        assert_eq!(change(&[11.0, 11.1, 10.9, 11.05, 10.95], 0.15), Change::Same);
        assert_eq!(change(&[9.0, 9.1, 8.9, 9.05, 8.95], 0.02), Change::Slower);
        assert_eq!(change(&[9.0, 12.0, 8.9, 9.05, 10.1], 0.02), Change::Same);
        let gone = diff(&before, &[], 0.0);
        assert!(gone.len() == 1 && gone[0].change == Change::Gone && gone[0].after.is_none());
        assert_eq!(diff(&[], &before, 0.0)[0].change, Change::New);
    }
}
