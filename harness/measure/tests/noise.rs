//! What METHODOLOGY.md promises about differences, tried out on the reference machine's own noise: A/A records of 300 rounds, outliers and
//! all. `data/noise-busy.jsonl` was measured beside other work (a pair differs by 23 % in the median), `data/noise-quiet.jsonl` without
//! any that this machine knew of (6.5 %: it is a virtual one).

use std::ops::ControlFlow;
use std::path::Path;

use ternbench_measure::record::{Body, Noise};
use ternbench_measure::rng::Rng;
use ternbench_measure::runner::DebugBuilds;
use ternbench_measure::stats::{Compared, Estimate};
use ternbench_measure::{Contender, Plan, RecordFile, interleave};

/// Rounds of a trial, as `speed --aa` runs them.
const ROUNDS: usize = 30;
/// The most rounds that `--precision` runs.
const MANY_ROUNDS: usize = 200;
/// The rate of false alarms that METHODOLOGY.md states.
const STATED: f64 = 0.05;

const BUSY: &str = "noise-busy.jsonl";
const QUIET: &str = "noise-quiet.jsonl";

/// The A/A record of a file.
fn measured(file: &str) -> Noise {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let mut records = RecordFile::read(&path).expect("readable").records;
    match records.pop().expect("one record").body {
        Body::Noise(noise) => noise,
        other => panic!("not an A/A record: {other:?}"),
    }
}

/// `rounds` consecutive rounds from anywhere in the measurement. Which of the two runs belongs to whom is drawn anew, as the runner
/// draws the order; the second contender's is then made slower by `slowdown`.
fn rounds_of(noise: &Noise, rounds: usize, slowdown: f64, rng: &mut Rng) -> Vec<(f64, f64)> {
    let start = rng.below(noise.first_ns.len() + 1 - rounds);
    let round = |i: usize| {
        let (a, b) = (noise.first_ns[start + i] as f64, noise.second_ns[start + i] as f64);
        let (a, b) = if rng.below(2) == 0 { (a, b) } else { (b, a) };
        (a, b * (1.0 + slowdown))
    };
    (0..rounds).map(round).collect()
}

fn excludes_one(ratio: Estimate) -> bool {
    ratio.low > 1.0 || ratio.high < 1.0
}

/// What a rate of so many trials may lie above the true one by chance: three standard errors.
fn luck(trials: u64) -> f64 {
    3.0 * (STATED * (1.0 - STATED) / trials as f64).sqrt()
}

/// The share of trials in which the two contenders are said to differ.
fn alarms(noise: &Noise, rounds: usize, slowdown: f64, trials: u64) -> f64 {
    let mut rng = Rng::new(11);
    let alarm = |seed| {
        let pairs = rounds_of(noise, rounds, slowdown, &mut rng);
        excludes_one(Compared::Paired(pairs).interval(seed).expect("positive times"))
    };
    (0..trials).map(alarm).filter(|&alarm| alarm).count() as f64 / trials as f64
}

#[test]
fn one_kernel_against_itself_covers_one_and_has_a_floor() {
    for noise in [BUSY, QUIET].map(measured) {
        let ratio = noise.ratio().expect("rounds");
        assert!(!excludes_one(ratio), "{ratio:?}");
        let floor = noise.floor().expect("rounds");
        assert!((ratio.low - 1.0).abs() <= floor && (ratio.high - 1.0).abs() <= floor, "{ratio:?} {floor}");
    }
}

#[test]
fn no_slowdown_is_not_found_more_often_than_stated() {
    for noise in [BUSY, QUIET].map(measured) {
        for rounds in [10, ROUNDS, 100] {
            let (trials, rate) = (4000, alarms(&noise, rounds, 0.0, 4000));
            println!("false alarms after {rounds} rounds: {:.2} %", 100.0 * rate);
            assert!(
                rate <= STATED + luck(trials),
                "{rate} of trials see a difference where there is none, {STATED} stated"
            );
        }
    }
}

#[test]
fn three_percent_of_slowdown_is_found() {
    for (noise, rounds, least) in [(QUIET, MANY_ROUNDS, 0.9), (QUIET, ROUNDS, 0.2), (BUSY, ROUNDS, 0.05)] {
        let rate = alarms(&measured(noise), rounds, 0.03, 1000);
        println!("3 % found in {noise} after {rounds} rounds: {:.1} %", 100.0 * rate);
        assert!(rate >= least, "3 % was seen in {rate} of trials");
    }
}

#[test]
fn stopping_when_the_interval_is_narrow_makes_no_false_alarms_either() {
    let (noise, mut rng) = (measured(BUSY), Rng::new(12));
    let plan = Plan {
        repetitions: 100,
        precision: Some(0.01),
        warmup: 0,
        debug_builds: DebugBuilds::AllowInTests,
        ..Plan::default()
    };
    let trials = 300;
    let mut rounds = 0;
    let mut alarm = |seed| {
        let pairs = rounds_of(&noise, 100, 0.0, &mut rng);
        let (mut first, mut second) = (pairs.iter(), pairs.iter());
        let mut contenders = [
            Contender::new("a", move || first.next().map(|pair| pair.0 as u64).ok_or_else(|| "over".into())),
            Contender::new("b", move || second.next().map(|pair| pair.1 as u64).ok_or_else(|| "over".into())),
        ];
        let plan = Plan { seed, ..plan.clone() };
        let outcome = interleave(&mut contenders, &plan, &mut |_| ControlFlow::Continue(())).expect("runs");
        rounds += outcome.rounds;
        let pairs = outcome.series[0].pairs_with(&outcome.series[1]);
        excludes_one(Compared::Paired(pairs).interval(seed).expect("positive times"))
    };
    let rate = (0..trials).filter(|&seed| alarm(seed)).count() as f64 / trials as f64;
    println!("false alarms when stopping early: {:.2} %, after {} rounds on average", 100.0 * rate, rounds / 300);
    assert!(rate <= STATED + luck(trials), "{rate}");
}
