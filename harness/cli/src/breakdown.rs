//! `speed --breakdown`: where the time of a token goes.

use anyhow::Result;
use ternbench_kernels::Pool;
use ternbench_model::breakdown::Part;
use ternbench_report::table::{Kind, Table, Value, column};

use crate::open::Loaded;
use crate::probes::Probes;
use crate::workload::{Bench, Workload};

/// What a part is called.
fn name(part: Part) -> &'static str {
    match part {
        Part::Qkv => "linear q, k, v",
        Part::O => "linear o",
        Part::GateUp => "linear gate, up",
        Part::Down => "linear down",
        Part::Attention => "attention",
        Part::Head => "lm head and argmax",
        Part::Other => "norms, gates, quantising, residuals",
    }
}

/// Runs a workload once to warm up and once more with a clock at every part. Decode, where bandwidth is the limit, also gets what each
/// part read and how near to the measured bandwidth that is.
pub fn measure(loaded: &Loaded, pool: &Pool, workload: Workload, probes: &Probes) -> Result<Table> {
    let mut bench = Bench::new(loaded.engine(pool), workload)?;
    bench.run()?;
    bench.engine().take_breakdown();
    let total = bench.run()? as f64;
    let times = bench.engine().take_breakdown();
    let bytes = bench.bytes_per_token();
    let bandwidth = probes.limits(pool.n_threads(), loaded.model.arithmetic()).bandwidth_bytes_per_s;
    let read = |part: Part| -> u64 {
        let names: &[&str] = match part {
            Part::Qkv | Part::O | Part::GateUp | Part::Down => return loaded.model.linear_bytes(part),
            Part::Attention => &["kv"],
            Part::Head => &["lm_head"],
            Part::Other => &["norms", "embedding"],
        };
        names.iter().filter_map(|name| bytes.get(*name)).sum()
    };
    let tokens = workload.tokens() as f64;
    let row = |name: &str, ns: f64, read: Option<u64>| -> Vec<Value> {
        let read = read.filter(|_| workload.n_gen > 0 && bandwidth > 0.0 && ns > 0.0);
        let near = read.map(|read| read as f64 * tokens / bandwidth * 1e9 / ns);
        vec![name.into(), (ns / 1e6 / tokens).into(), (ns / total).into(), read.into(), near.into()]
    };
    let (regions, waited) = times.waits();
    let waiting = format!("of it waiting at the ends of {:.0} regions", regions as f64 / tokens);
    let times = Part::ALL.map(|part| (part, times.time(part).as_nanos() as f64));
    let rest = total - times.iter().map(|(_, ns)| ns).sum::<f64>();
    let columns = [
        column("part", "part", Kind::Text),
        column("ms_per_token", "ms/token", Kind::Number),
        column("share", "of the time", Kind::Share),
        column("bytes_per_token", "GB read", Kind::Bytes),
        column("of_bandwidth", "of the bandwidth", Kind::Share),
    ];
    let rows = times.map(|(part, ns)| row(name(part), ns, Some(read(part))));
    let all = Part::ALL.iter().map(|&part| read(part)).sum();
    Ok(Table::new(columns).with_rows(rows).with_rows([
        row("rest", rest, None),
        row("total", total, Some(all)),
        row(&waiting, waited.as_nanos() as f64, None),
    ]))
}
