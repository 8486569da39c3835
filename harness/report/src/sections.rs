//! The tables of a report, from records: one function per table, shared by Markdown, HTML and the exporters.

mod accuracy;
mod size;

use ternbench_measure::Record;
use ternbench_measure::record::Body;

use crate::catalogue::Catalogue;
use crate::compare::{By, cmp, cmp_table};
use crate::energy;
use crate::frame::{KernelRow, SpeedRow};
use crate::ledger::Ledger;
use crate::rank;
use crate::run::Run;
use crate::sums::Sums;
use crate::table::{Kind, Output, Table, Value, column};
use crate::twins;

pub use size::memory;

/// A table with its heading.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// What has to be known to read it.
    pub note: &'static str,
    /// The table.
    pub table: Table,
}

impl Section {
    /// For a terminal or a pipe.
    pub fn text(&self, output: Output) -> String {
        format!("{}\n{}\n{}", self.title, self.note, self.table.text(output))
    }
}

/// The sections of a report that have rows, in order.
pub fn all(run: &Run, speeds: &[SpeedRow], kernels: &[KernelRow]) -> Vec<Section> {
    let records = &run.records;
    let section = |title, note, table| Section { title, note, table };
    let mut sections = vec![
        section(
            "Speed",
            "Medians over all repetitions; nothing was dropped. The limit is the measured peak of bandwidth or arithmetic, whichever binds.",
            speed(speeds),
        ),
        section(
            "Side by side",
            "Contenders that were interleaved, each against the fastest of its group: the median of the ratios within rounds.",
            cmp_table(&cmp(records, By::Any, None)),
        ),
        section(
            "Kernels by shape",
            "Each kernel alone on one matrix: n output rows, k inputs, m tokens.",
            self::kernels(kernels),
        ),
        section(
            "Ranking of kernels",
            "Geometric mean over shapes of the speed against the best; bounded kernels apart from exact ones.",
            rank::table(&rank::rank(records)),
        ),
        section("Refused", "These enter no other table, ratio or verdict.", refused(records)),
        section(
            "Noise",
            "A/A runs: in every group one contender ran twice in each round. The floor is how far the interval of its ratio to itself reaches from 1: a smaller difference was not told apart from none.",
            noise(records),
        ),
        section(
            "Memory",
            "GB (10⁹ bytes), less what was resident before loading. Windows into mapped files count as file pages, as far as they were touched. The parts must add up to what the system says is resident.",
            memory(records),
        ),
        section(
            "Loading",
            "From file or seed to a model that can run, packing included; and on to the first token behind a prompt.",
            size::load(records),
        ),
        section("Accuracy", "Items scored; Wilson intervals.", accuracy::scores(run)),
        paired(run),
        section(
            "Energy by formula",
            "Joules of one pass over 512 tokens by the report's own formula, not measured. What it counts, what was published, and what it leaves out: the lm head, the norms, and reading every weight from memory once (in decode every token pays that).",
            energy::table(),
        ),
        section("Verification", "Done before anything was timed.", verification(records)),
    ];
    sections.extend(twins::tables(records));
    sections.retain(|section| !section.table.rows.is_empty());
    sections
}

/// What is to be seen of the twins alone: their tables, and how they compare item by item.
pub fn twins(run: &Run) -> Vec<Section> {
    let mut sections = twins::tables(&run.records);
    sections.push(paired(run));
    sections.retain(|section| !section.table.rows.is_empty());
    sections
}

fn paired(run: &Run) -> Section {
    Section {
        title: "Accuracy by items",
        note: "Runs that answered the same items, paired: the interval resamples items; McNemar's exact p says how likely so uneven a \
               split is between equals.",
        table: accuracy::paired(run),
    }
}

/// Speeds: one row per workload, model, kernel and thread count.
pub fn speed(rows: &[SpeedRow]) -> Table {
    let columns = [
        column("workload", "workload", Kind::Text),
        column("title", "model", Kind::Text),
        column("model", "", Kind::Text),
        column("weights", "weights", Kind::Text),
        column("kernel", "kernel", Kind::Text),
        column("isa", "ISA", Kind::Text),
        column("exactness", "", Kind::Text),
        column("n_threads", "threads", Kind::Count),
        column("tokens_per_s", "tok/s (median)", Kind::Estimate),
        column("tokens_per_s_mad", "", Kind::Number),
        column("limit_tokens_per_s", "", Kind::Number),
        column("share_of_limit", "of limit", Kind::Share),
    ];
    Table::new(columns).with_rows(rows.iter().map(|row| {
        vec![
            row.workload.clone().into(),
            Catalogue::get().title(&row.shape).into(),
            row.model.clone().into(),
            row.held().into(),
            row.sums.mark(&row.kernel).into(),
            row.isa.clone().into(),
            row.sums.name().into(),
            row.n_threads.into(),
            row.tokens_per_s.into(),
            row.mad.into(),
            row.limit_tokens_per_s.into(),
            row.share_of_limit().into(),
        ]
    }))
}

/// Kernels on their own: one row per shape, batch, thread count and kernel.
pub fn kernels(rows: &[KernelRow]) -> Table {
    let columns = [
        column("n", "n", Kind::Count),
        column("k", "k", Kind::Count),
        column("m", "m", Kind::Count),
        column("kernel", "kernel", Kind::Text),
        column("isa", "", Kind::Text),
        column("exactness", "sums", Kind::Text),
        column("n_threads", "threads", Kind::Count),
        column("cache", "weights", Kind::Text),
        column("compute_us", "µs (median)", Kind::Estimate),
        column("compute_us_mad", "", Kind::Number),
        column("gmacs_per_s", "G MAC/s", Kind::Number),
        column("gbytes_per_s", "GB/s", Kind::Number),
        column("share_of_limit", "of limit", Kind::Share),
    ];
    Table::new(columns).with_rows(rows.iter().map(|row| {
        vec![
            row.n.into(),
            row.k.into(),
            row.m.into(),
            row.kernel.clone().into(),
            row.isa.clone().into(),
            row.sums.name().into(),
            row.n_threads.into(),
            row.cache.clone().into(),
            row.compute_ns.scale(1e-3).into(),
            (row.mad / 1e3).into(),
            (row.macs().value / 1e9).into(),
            (row.packed_bytes / row.compute_ns.value).into(),
            row.share_of_limit().into(),
        ]
    }))
}

/// A/A runs: the ratio of a contender to itself.
pub fn noise(records: &[Record]) -> Table {
    let columns = [
        column("workload", "workload", Kind::Text),
        column("group", "group", Kind::Text),
        column("title", "model", Kind::Text),
        column("model", "", Kind::Text),
        column("weights", "weights", Kind::Text),
        column("kernel", "kernel", Kind::Text),
        column("n_threads", "threads", Kind::Count),
        column("ratio", "against itself", Kind::Ratio),
        column("covers_1", "holds 1", Kind::Text),
        column("floor", "noise floor", Kind::Share),
    ];
    Table::new(columns).with_rows(records.iter().filter_map(|record| match &record.body {
        Body::Noise(noise) => {
            let ratio = noise.ratio()?;
            let title = Catalogue::get().title(noise.model.shape().unwrap_or(&noise.model.model));
            let words = [&noise.workload, &noise.group, title, &noise.model.model, &noise.model.weights];
            let covers = if (ratio.low..=ratio.high).contains(&1.0) { "yes" } else { "no" };
            let kernel = Sums::of_code(&noise.code).mark(&noise.code.kernel);
            let rest: [Value; 5] =
                [kernel.into(), noise.n_threads.into(), ratio.into(), covers.into(), noise.floor().into()];
            Some(words.map(Value::from).into_iter().chain(rest).collect())
        }
        _ => None,
    }))
}

fn refused(records: &[Record]) -> Table {
    let columns = [
        column("what", "what", Kind::Text),
        column("kernel", "kernel", Kind::Text),
        column("workload", "workload", Kind::Text),
        column("n_threads", "threads", Kind::Count),
        column("why", "why", Kind::Text),
    ];
    Table::new(columns).with_rows(records.iter().filter_map(|record| match &record.body {
        Body::Speed(speed) => Some(vec![
            speed.model.model.clone().into(),
            speed.code.kernel.clone().into(),
            speed.workload.clone().into(),
            speed.n_threads.into(),
            speed.refused.clone()?.into(),
        ]),
        Body::Kernel(kernel) => Some(vec![
            "kernel alone".into(),
            kernel.code.kernel.clone().into(),
            format!("{}x{} m{}", kernel.n, kernel.k, kernel.m).into(),
            kernel.n_threads.into(),
            kernel.refused.clone()?.into(),
        ]),
        _ => None,
    }))
}

fn verification(records: &[Record]) -> Table {
    let columns = [
        column("kernel", "kernel", Kind::Text),
        column("compared", "compared", Kind::Text),
        column("amount", "how much", Kind::Text),
        column("result", "result", Kind::Text),
    ];
    Table::new(columns).with_rows(records.iter().filter_map(|record| match &record.body {
        Body::Verify(verify) => {
            let result = match (&verify.skipped, verify.ok) {
                (Some(why), _) => format!("skipped: {why}"),
                (None, true) if verify.code.exact => "equal to the oracle".into(),
                (None, true) => "within its bound".into(),
                (None, false) => format!("WRONG: {}", verify.first_mismatch.as_deref().unwrap_or("a sum differs")),
            };
            let amount = format!("{} cases on {} shapes", verify.cases, verify.shapes.len());
            Some(vec![verify.code.kernel.clone().into(), "sums".into(), amount.into(), result.into()])
        }
        Body::Agreement(agreement) => {
            let amount = format!("{} tokens of {} prompts", agreement.n_tokens, agreement.n_prompts);
            let result = format!("{} differ from {}", agreement.n_differ, agreement.reference_kernel);
            Some(vec![agreement.code.kernel.clone().into(), "greedy tokens".into(), amount.into(), result.into()])
        }
        _ => None,
    }))
}

/// The ledger for programs.
pub fn claims(ledger: &Ledger) -> Table {
    let columns = [
        column("id", "claim", Kind::Text),
        column("claim", "said", Kind::Text),
        column("sources", "sources", Kind::Text),
        column("published", "published", Kind::Text),
        column("conditions", "conditions", Kind::Text),
        column("measured", "measured here", Kind::Text),
        column("verdict", "verdict", Kind::Text),
        column("reason", "why", Kind::Text),
        column("command", "to measure or decide", Kind::Text),
    ];
    Table::new(columns).with_rows(ledger.rows.iter().map(|row| {
        vec![
            row.id.clone().into(),
            row.claim.clone().into(),
            row.sources.join(" ").into(),
            row.published.clone().into(),
            row.conditions.clone().into(),
            row.finding.measured.clone().into(),
            row.finding.verdict.name().into(),
            row.finding.reason.clone().into(),
            row.command.clone().into(),
        ]
    }))
}

/// Every sample that counts, one row each: what other tools want to compute with.
pub fn samples(records: &[Record]) -> Table {
    let columns = [
        column("run_id", "run", Kind::Text),
        column("group", "group", Kind::Text),
        column("workload", "workload", Kind::Text),
        column("model", "model", Kind::Text),
        column("weights", "weights", Kind::Text),
        column("kernel", "kernel", Kind::Text),
        column("n_threads", "threads", Kind::Count),
        column("round", "round", Kind::Count),
        column("rate", "tok/s or G MAC/s", Kind::Number),
    ];
    let mut table = Table::new(columns);
    for series in crate::compare::Series::all(records) {
        let what = &series.contender;
        let (run_id, group) = &series.group;
        let words = [run_id, group, &what.workload, &what.model, &what.weights, &what.kernel];
        for (i, &rate) in series.rates.iter().enumerate() {
            let round = series.rounds.get(i).map(|&round| u64::from(round));
            let words = words.into_iter().map(|word| Value::from(word.as_str()));
            table.rows.push(words.chain([what.n_threads.into(), round.into(), rate.into()]).collect());
        }
    }
    table
}
