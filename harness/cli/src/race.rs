//! One group of interleaved runs: our models and other programs, timed in the same rounds, checked, and turned into records.

use std::ops::ControlFlow;

use anyhow::Result;
use indicatif::ProgressBar;
use ternbench_kernels::Pool;
use ternbench_kernels::dense::{self, Activations};
use ternbench_measure::energy::{Counters, NoEnergy};
use ternbench_measure::interrupt;
use ternbench_measure::plan::Stopped;
use ternbench_measure::record::{self, Body};
use ternbench_measure::runner::{Event, Failure, Series};
use ternbench_measure::{Contender, Cost, Outcome, Plan, interleave};

use crate::console;
use crate::open::Loaded;
use crate::opponent::{Opponent, Row};
use crate::probes::Probes;
use crate::workload::{self, Bench, Workload};

/// Who takes part.
#[derive(Clone, Copy)]
pub enum Entrant<'a> {
    /// A model of ours on a pool, with up to so many drafted tokens a pass of decode.
    Model(&'a Loaded, &'a Pool, usize),
    /// Another program with so many threads.
    Opponent(&'a Opponent, usize),
}

/// By what rules.
pub struct Rules<'a> {
    /// How often, and when to stop.
    pub plan: &'a Plan,
    /// The limits that results are held to.
    pub probes: &'a Probes,
    /// The kernels compared with the oracle: what failed there is not believed here.
    pub proofs: &'a [record::Verify],
    /// What measures energy, or why nothing does.
    pub energy: &'a Result<Counters, NoEnergy>,
    /// Whether the pools' workers are bound to cores.
    pub pinned: bool,
}

/// What came out.
pub struct Results {
    /// Speeds, and the noise of the contender that ran twice.
    pub records: Vec<Body>,
    /// Whether Ctrl-C ended it. The records then hold the complete rounds before.
    pub interrupted: bool,
}

/// An entrant made ready. Models keep what the machine could multiply before each run, opponents what they said last.
enum Ready<'a> {
    Bench(Box<Bench<'a>>, Vec<f64>),
    Opponent(Option<Box<Row>>),
}

/// Runs `workload` on every entrant, interleaved. What fails, is wrong or is impossible becomes a refused record with the reason.
pub fn run(entrants: &[Entrant<'_>], workload: Workload, group: &str, rules: &Rules<'_>) -> Result<Results> {
    let counters = rules.energy.as_ref().ok();
    // What other programs run, who may draft in ways of their own, or not.
    let undrafted = Workload { draft: 0, ..workload };
    let mut ready = entrants
        .iter()
        .map(|entrant| match *entrant {
            Entrant::Model(loaded, pool, draft) => {
                let workload = Workload { draft, ..workload };
                Ok(Ready::Bench(Box::new(Bench::new(loaded.engine(pool), workload)?), Vec::new()))
            }
            Entrant::Opponent(..) => Ok(Ready::Opponent(None)),
        })
        .collect::<Result<Vec<_>>>()?;
    let per_round = entrants.len() as u64 + u64::from(rules.plan.twin);
    let runs = u64::from(rules.plan.warmup) * entrants.len() as u64 + u64::from(rules.plan.repetitions) * per_round;
    let bar = console::bar(runs, group);
    let mut contenders: Vec<Contender<'_>> = ready
        .iter_mut()
        .zip(entrants)
        .map(|(ready, entrant)| {
            let name = format!("{}, {workload}", entrant.name());
            Contender::metered(name, move || match (&mut *ready, entrant) {
                (Ready::Bench(bench, macs), Entrant::Model(loaded, pool, _)) => {
                    macs.extend(rules.probes.macs_now(pool, loaded.model.arithmetic()));
                    bench.run_metered(counters).map_err(Into::into)
                }
                (Ready::Opponent(last), Entrant::Opponent(opponent, n_threads)) => {
                    // In one line: the runner keeps no causes.
                    let row = opponent.run(undrafted, *n_threads).map_err(|error| console::one_line(&error))?;
                    let ns = row.total_ns()?;
                    *last = Some(Box::new(row));
                    Ok(Cost { ns, joules: None })
                }
                _ => Err(Failure::from("a model is no opponent")),
            })
        })
        .collect();
    let outcome = interleave(&mut contenders, rules.plan, &mut |event| {
        show(&bar, event);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(contenders);
    bar.finish_and_clear();
    Ok(results(entrants, &ready, workload, group, rules, outcome))
}

fn results(
    entrants: &[Entrant<'_>],
    ready: &[Ready<'_>],
    workload: Workload,
    group: &str,
    rules: &Rules<'_>,
    mut outcome: Outcome,
) -> Results {
    let interrupted = outcome.stopped == Stopped::Interrupted;
    if interrupted {
        // Half a round pairs with nothing, and fewer rounds than the least say nothing.
        let rounds = if outcome.rounds < rules.plan.min_repetitions { 0 } else { outcome.rounds };
        let twin = outcome.twin.as_mut().map(|(_, series)| series);
        for series in outcome.series.iter_mut().chain(twin) {
            series.samples.retain(|sample| sample.round < rounds);
        }
    }
    let protocol = rules.plan.protocol(outcome.stopped, rules.pinned);
    let mut speeds: Vec<record::Speed> = Vec::new();
    let mut probed = Vec::new();
    for ((entrant, ready), series) in entrants.iter().zip(ready).zip(&outcome.series) {
        let mut speed = match (entrant, ready) {
            (Entrant::Model(loaded, pool, _), Ready::Bench(bench, _)) => {
                workload::speed_record(loaded, bench, rules.probes.limits(pool.n_threads(), loaded.model.arithmetic()))
            }
            (Entrant::Opponent(opponent, n_threads), Ready::Opponent(row)) => {
                opponent.speed_record(row.as_deref(), Workload { draft: 0, ..workload }, *n_threads)
            }
            _ => continue,
        };
        speed.group = group.to_owned();
        speed.samples = series.to_samples(workload.tokens() as u64);
        speed.samples_joules = series.joules();
        speed.energy = Some(match rules.energy {
            Ok(_) if speed.opponent.is_some() => NoEnergy::Mixed("the loading of the model").to_string(),
            Ok(counters) => counters.source().to_owned(),
            Err(reason) => reason.to_string(),
        });
        speed.protocol = Some(protocol.clone());
        speed.refused = series.failed.clone().or_else(|| wrong(&speed, rules.proofs));
        if let (Entrant::Model(loaded, pool, _), Ready::Bench(_, macs)) = (entrant, ready) {
            probed.extend(hold_to_limits(&mut speed, loaded, pool, rules.probes));
            speed.follow_clock(macs.clone());
        }
        speeds.push(speed);
    }
    refuse_disagreement(&mut speeds);
    let noise = outcome.twin.and_then(|(index, twin)| noise(speeds.get(index)?, &outcome.series[index], &twin));
    // An interrupted contender without samples is no result; a failed one is.
    speeds.retain(|speed| !speed.samples.ns.is_empty() || speed.refused.is_some());
    let speeds = speeds.into_iter().map(Body::from);
    Results {
        records: probed.into_iter().map(Body::from).chain(speeds).chain(noise.map(Body::from)).collect(),
        interrupted,
    }
}

/// Refuses a result above its limit, but not before the limit was probed again, up to three times: a probe that had to share the machine
/// shows less than what is possible. Returns the new probes.
fn hold_to_limits(speed: &mut record::Speed, loaded: &Loaded, pool: &Pool, probes: &Probes) -> Vec<record::Probe> {
    let mut probed = Vec::new();
    if speed.refused.is_some() {
        return probed;
    }
    for attempt in 0..4 {
        if attempt > 0 {
            probed.extend(probes.again(pool, 2.0));
        }
        speed.refused = None;
        speed.limits = probes.limits(pool.n_threads(), loaded.model.arithmetic());
        speed.check_limits();
        if speed.refused.is_none() {
            break;
        }
    }
    probed
}

/// Why a kernel's result cannot be right, by its proof.
fn wrong(speed: &record::Speed, proofs: &[record::Verify]) -> Option<String> {
    let proof = proofs.iter().find(|proof| proof.code.kernel == speed.code.kernel)?;
    proof.first_mismatch.as_ref().map(|mismatch| format!("wrong: {mismatch}"))
}

/// Exact kernels give the same bits. Where two differ on the same weights and workload nobody here can say which one is right, so
/// none of them counts. Kernels that round their input are not meant to give what others give.
fn refuse_disagreement(speeds: &mut [record::Speed]) {
    let checked = |s: &record::Speed| s.refused.is_none() && s.opponent.is_none() && s.code.exact;
    let reasons: Vec<Option<String>> = speeds
        .iter()
        .map(|mine| {
            let same = |other: &&record::Speed| {
                let alike = other.model == mine.model && rounds(&other.code.kernel) == rounds(&mine.code.kernel);
                checked(other) && alike && other.output_checksum != mine.output_checksum
            };
            let other = speeds.iter().find(same).filter(|_| checked(mine))?;
            Some(format!(
                "wrong: its output {} differs from that of {} with {} threads, {}",
                mine.output_checksum, other.code.kernel, other.n_threads, other.output_checksum
            ))
        })
        .collect();
    for (speed, reason) in speeds.iter_mut().zip(reasons) {
        speed.refused = speed.refused.take().or(reason);
    }
}

/// Whether a kernel rounds its input.
fn rounds(kernel: &str) -> bool {
    dense::dense_kernels()
        .iter()
        .any(|entry| entry.info.name == kernel && entry.info.activations == Activations::Rounded)
}

/// The A/A record of the contender that ran twice, from the rounds that have both runs.
fn noise(speed: &record::Speed, first: &Series, twin: &Series) -> Option<record::Noise> {
    if speed.refused.is_some() {
        return None;
    }
    let pairs = first.pairs_with(twin);
    let (first_ns, second_ns): (Vec<u64>, Vec<u64>) = pairs.iter().map(|&(a, b)| (a as u64, b as u64)).unzip();
    (!first_ns.is_empty()).then(|| record::Noise {
        model: speed.model.clone(),
        code: speed.code.clone(),
        n_threads: speed.n_threads,
        workload: speed.workload.clone(),
        group: speed.group.clone(),
        first_ns,
        second_ns,
        protocol: speed.protocol.clone(),
    })
}

impl Entrant<'_> {
    /// Name in progress messages and dry runs.
    pub fn name(&self) -> String {
        match self {
            Self::Model(loaded, pool, draft) => {
                let drafts = if *draft > 0 { ", speculating" } else { "" };
                format!("{}, {}, {}t{drafts}", loaded.info.model, loaded.model.kernel_name(), pool.n_threads())
            }
            Self::Opponent(opponent, n_threads) => format!("{opponent}, {n_threads}t"),
        }
    }
}

fn show(bar: &ProgressBar, event: Event<'_>) {
    match event {
        Event::WarmUp { name } => {
            bar.inc(1);
            bar.set_message(format!("{name} (warm-up)"));
        }
        Event::Start { name, .. } => bar.set_message(name.to_owned()),
        Event::Sample { .. } => bar.inc(1),
        Event::Failed { name, reason } => bar.println(format!("{name}: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(kernel: &str, checksum: &str) -> record::Speed {
        record::Speed {
            code: record::Code { kernel: kernel.into(), isa: "avx2".into(), exact: true },
            output_checksum: checksum.into(),
            ..record::Speed::default()
        }
    }

    #[test]
    fn a_kernel_that_was_wrong_is_not_believed() {
        let mismatch = Some("64x256 m1, all ones: row 3 is 7, expected 8".to_owned());
        let code = |kernel: &str| speed(kernel, "").code;
        let proofs = [
            record::Verify { code: code("good"), ok: true, ..record::Verify::default() },
            record::Verify { code: code("bad"), first_mismatch: mismatch, ..record::Verify::default() },
        ];
        assert_eq!(wrong(&speed("good", ""), &proofs), None);
        let reason = wrong(&speed("bad", ""), &proofs).expect("refused");
        assert_eq!(reason, "wrong: 64x256 m1, all ones: row 3 is 7, expected 8");
    }

    #[test]
    fn exact_kernels_that_disagree_all_lose_their_rows() {
        let mut speeds = vec![speed("a", "1"), speed("b", "2"), speed("c", "1")];
        speeds.push(record::Speed { opponent: Some(record::Opponent::default()), ..speed("llama-bench", "") });
        let lossy = speed("lossy", "3");
        speeds.push(record::Speed { code: record::Code { exact: false, ..lossy.code.clone() }, ..lossy });
        refuse_disagreement(&mut speeds);
        let refused: Vec<bool> = speeds.iter().map(|speed| speed.refused.is_some()).collect();
        assert_eq!(refused, [true, true, true, false, false]);
        let reason = speeds[0].refused.as_deref().expect("refused");
        assert_eq!(reason, "wrong: its output 1 differs from that of b with 0 threads, 2");
        let mut agreeing = vec![speed("a", "1"), speed("b", "1"), speed("scalar-q8_0-int8", "2")];
        refuse_disagreement(&mut agreeing);
        assert!(agreeing.iter().all(|speed| speed.refused.is_none()));
    }
}
