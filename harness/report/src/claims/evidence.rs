//! The records that count, and ratios between them.

use std::collections::BTreeSet;

use ternbench_measure::Record;
use ternbench_measure::record::{Accuracy, Agreement, Body, Load, Memory, Speed, Verify};
use ternbench_measure::stats::{self, Compared, Estimate};

use crate::compare::pairs;
use crate::pairing::Pairing;
use crate::run::Run;

/// Records by kind, without what was refused.
#[derive(Debug, Default)]
pub struct Evidence<'a> {
    /// Speeds that count, with the record around them. No claim is about drafted tokens.
    pub speeds: Vec<(&'a Record, &'a Speed)>,
    /// Speeds that were refused.
    pub refused: usize,
    /// Verifications, with the record around them.
    pub verifies: Vec<(&'a Record, &'a Verify)>,
    /// Agreements.
    pub agreements: Vec<&'a Agreement>,
    /// Loads.
    pub loads: Vec<&'a Load>,
    /// Memories.
    pub memories: Vec<&'a Memory>,
    /// Accuracies, with the index of the record.
    pub accuracies: Vec<(usize, &'a Accuracy)>,
    /// Accuracies paired by items.
    pub pairings: &'a [Pairing],
    /// Architectures that any record was made on.
    pub archs: BTreeSet<&'a str>,
}

impl<'a> Evidence<'a> {
    /// Sorts the records of a run.
    pub fn new(run: &'a Run) -> Self {
        let mut evidence = Self { pairings: &run.pairings, ..Self::default() };
        for (index, record) in run.records.iter().enumerate() {
            evidence.archs.insert(&record.arch);
            match &record.body {
                Body::Speed(speed) if speed.refused.is_some() || speed.samples.ns.is_empty() => evidence.refused += 1,
                Body::Speed(speed) if speed.drafts.is_some() || speed.n_parallel > 1 || speed.has_int8_kv() => {}
                Body::Speed(speed) => evidence.speeds.push((record, speed)),
                Body::Verify(verify) => evidence.verifies.push((record, verify)),
                Body::Agreement(agreement) => evidence.agreements.push(agreement),
                Body::Load(load) => evidence.loads.push(load),
                Body::Memory(memory) => evidence.memories.push(memory),
                Body::Accuracy(accuracy) => evidence.accuracies.push((index, accuracy)),
                Body::Probe(_) | Body::Noise(_) | Body::Kernel(_) | Body::Gate(_) | Body::Claim(_) => {}
            }
        }
        evidence
    }

    /// The decode speed of `left` against that of `right`: on `tg128` or else the longest decode, at the most threads that both
    /// ran with, of one group where they share one. Where several of `left` or `right` are there, the fastest counts.
    pub fn compare_decode(
        &self,
        left: impl Fn(&Speed) -> bool,
        right: impl Fn(&Speed) -> bool,
    ) -> Option<Comparison<'a>> {
        let decodes = |side: &dyn Fn(&Speed) -> bool| -> Vec<(&'a Record, &'a Speed, f64)> {
            let rate = |speed: &Speed| stats::median(&speed.samples.tokens_per_s()).unwrap_or(0.0);
            let fits = self.speeds.iter().filter(|(_, speed)| speed.is_plain_decode() && side(speed));
            fits.map(|(record, speed)| (*record, *speed, rate(speed))).collect()
        };
        let (lefts, rights) = (decodes(&left), decodes(&right));
        let both = lefts.iter().flat_map(|left| rights.iter().map(move |right| (left, right)));
        let alike = both.filter(|((a_record, a, _), (b_record, b, _))| {
            a_record.host_id == b_record.host_id && a.n_gen == b.n_gen && a.n_threads == b.n_threads
        });
        // Which of two comparisons counts: the standard workload, more generated tokens, more threads, one group, faster.
        let ranked = alike.map(|((a_record, a, a_rate), (b_record, b, b_rate))| {
            let same_group = a_record.run_id == b_record.run_id && a.group == b.group;
            ((a.n_gen == 128, a.n_gen, a.n_threads, same_group, *a_rate, *b_rate), (*a, *b))
        });
        let best = ranked.max_by(|(x, _), (y, _)| x.partial_cmp(y).unwrap_or(std::cmp::Ordering::Equal));
        best.map(|((_, _, _, same_group, ..), (a, b))| Comparison::new(a, b, same_group))
    }
}

/// Two speeds side by side.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    /// The one that should be faster.
    pub left: &'a Speed,
    /// The one it is compared with.
    pub right: &'a Speed,
    /// Samples of both.
    pub compared: Compared,
}

impl<'a> Comparison<'a> {
    fn new(left: &'a Speed, right: &'a Speed, same_group: bool) -> Self {
        let (a, b) = (left.samples.tokens_per_s(), right.samples.tokens_per_s());
        let pairs = pairs(&left.samples.rounds, &a, &right.samples.rounds, &b);
        let compared = if same_group && !pairs.is_empty() { Compared::Paired(pairs) } else { Compared::Unpaired(a, b) };
        Self { left, right, compared }
    }

    /// The ratio with its interval.
    pub fn estimate(&self) -> Option<Estimate> {
        self.compared.interval(stats::SEED)
    }

    /// The ratio.
    pub fn ratio(&self) -> f64 {
        self.compared.ratio().unwrap_or(f64::NAN)
    }

    /// `, unpaired` where it is.
    pub fn pairing(&self) -> &'static str {
        match self.compared {
            Compared::Paired(_) => "",
            Compared::Unpaired(..) => ", unpaired",
        }
    }

    /// `tg128, 2 threads`.
    pub fn conditions(&self) -> String {
        let threads = if self.left.n_threads == 1 { "thread" } else { "threads" };
        format!("{}, {} {threads}", self.left.workload, self.left.n_threads)
    }
}

/// The layout in a kernel's name: `i2s` of `avx2-i2s-maddubs`.
pub fn layout_of(kernel: &str) -> &str {
    kernel.split('-').nth(1).unwrap_or("")
}

/// `2.31x (2.25 to 2.38)`.
pub fn show_ratio(estimate: Estimate) -> String {
    format!("{:.2}x ({:.2} to {:.2})", estimate.value, estimate.low, estimate.high)
}
