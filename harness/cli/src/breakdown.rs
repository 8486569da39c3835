//! `speed --breakdown`: where the time of a token goes.

use anyhow::Result;
use ternbench_kernels::Pool;
use ternbench_kernels::probe::Arithmetic;
use ternbench_measure::limits::{self, Work};
use ternbench_measure::stats;
use ternbench_model::breakdown::Part;
use ternbench_report::table::{Kind, Table, Value, column};

use crate::open::Loaded;
use crate::probes::Probes;
use crate::workload::{Bench, Workload};

/// What a part is called.
fn name(part: Part) -> &'static str {
    match part {
        Part::Qkv => "linear q, k, v",
        Part::O => "linear o, residual",
        Part::GateUp => "linear gate, up, gating",
        Part::Down => "linear down, residual",
        Part::Attention => "attention",
        Part::Head => "lm head and argmax",
        Part::Other => "norms, quantising",
    }
}

/// Runs of a workload, of which the one in the middle is shown.
const RUNS: usize = 3;

/// Runs a workload once to warm up and [`RUNS`] times with a clock at every part. A part's limit is what its bytes or its multiply-adds
/// take at the measured peaks, whichever is longer; parts follow one another, so the limit of all is the sum.
pub fn measure(loaded: &Loaded, pool: &Pool, workload: Workload, probes: &Probes) -> Result<Table> {
    let mut bench = Bench::new(loaded.engine(pool), workload)?;
    bench.run()?;
    let mut runs = Vec::with_capacity(RUNS);
    let mut macs_per_s = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        macs_per_s.extend(probes.macs_now(pool, loaded.model.arithmetic()));
        bench.engine().take_breakdown();
        let total = bench.run()?;
        runs.push((total, bench.engine().take_breakdown()));
    }
    runs.sort_by_key(|(total, _)| *total);
    let (total, times) = runs[RUNS / 2];
    let (total, tokens) = (total as f64, workload.tokens() as f64);
    let limits = |arithmetic| probes.limits(pool.n_threads(), arithmetic);
    let of_layers = limits(loaded.model.arithmetic());
    let clock = stats::median(&macs_per_s).map_or(1.0, |usual| usual / of_layers.macs_per_s);
    // What a ternary model multiplies by no trits, it multiplies without their tables.
    let peaks = |part| -> limits::Peaks {
        let limits = match (part, loaded.model.arithmetic()) {
            (Part::Attention | Part::Head, Arithmetic::Ternary) => limits(Arithmetic::Int8),
            _ => of_layers,
        };
        limits.at_clock(limits.macs_per_s * clock).into()
    };
    let row = |name: &str, ns: f64, work: Option<Work>, limit_s: Option<f64>, bound: &str| -> Vec<Value> {
        let mega = |n: u64| Value::from(n as f64 / 1e6);
        vec![
            name.into(),
            (ns / 1e6 / tokens).into(),
            (ns / total).into(),
            work.map_or(Value::None, |work| mega(work.bytes_per_token)),
            work.map_or(Value::None, |work| mega(work.macs_per_token)),
            work.map_or(Value::None, |work| mega(work.fmas_per_token)),
            limit_s.map(|limit| limit * 1e3).into(),
            bound.into(),
            limit_s.filter(|_| ns > 0.0).map(|limit| limit * tokens * 1e9 / ns).into(),
        ]
    };
    let mut all = Work::default();
    let mut all_s = Some(0.0);
    let mut part_ns = 0.0;
    let rows = Part::ALL.map(|part| {
        let (work, ns) = (bench.work_of(part), times.time(part).as_nanos() as f64);
        let limit = limits::limit(work, peaks(part));
        let limit_s = limit.map(|limit| 1.0 / limit.tokens_per_s);
        all.bytes_per_token += work.bytes_per_token;
        all.macs_per_token += work.macs_per_token;
        all.fmas_per_token += work.fmas_per_token;
        all_s = all_s.zip(limit_s).map(|(all, part)| all + part);
        part_ns += ns;
        row(name(part), ns, Some(work), limit_s, limit.map_or("", |limit| limit.bound.name()))
    });
    let (regions, waited) = times.waits();
    let waiting = format!("of it waiting at the ends of {:.0} regions", regions as f64 / tokens);
    let columns = [
        column("part", "part", Kind::Text),
        column("ms_per_token", "ms/token", Kind::Number),
        column("share", "of the time", Kind::Share),
        column("mb_per_token", "MB read", Kind::Number),
        column("mmacs_per_token", "M MAC", Kind::Number),
        column("mfmas_per_token", "M f32 FMA", Kind::Number),
        column("limit_ms_per_token", "limit, ms", Kind::Number),
        column("bound", "set by", Kind::Text),
        column("of_limit", "of its limit", Kind::Share),
    ];
    Ok(Table::new(columns).with_rows(rows).with_rows([
        row("rest", total - part_ns, None, None, ""),
        row("total", total, Some(all), all_s, "sum of the parts"),
        row(&waiting, waited.as_nanos() as f64, None, None, ""),
    ]))
}
