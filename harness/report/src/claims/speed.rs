//! Rules about speed. A best kernel is always an exact one.

use ternbench_measure::Record;
use ternbench_measure::record::Speed;
use ternbench_measure::stats::{self, Compared, Estimate, geometric_mean};

use super::evidence::{Comparison, Evidence, layout_of, show_ratio};
use crate::catalogue::{Catalogue, PublishedModel};
use crate::ledger::{Finding, Verdict};

/// More rounds than this are not asked for: the claim is then too close to what was measured.
const MOST_ROUNDS: f64 = 500.0;

/// A finding about a ratio that should be at least `low`, from so many comparisons of equally many rounds. Where the interval
/// straddles the claim it names the rounds that would decide: an interval narrows with their square root.
fn judged(estimate: Estimate, low: f64, n_comparisons: usize, reason: impl FnOnce(Verdict) -> String) -> Finding {
    let verdict = Verdict::at_least(estimate, low);
    let mut finding = Finding::new(verdict, show_ratio(estimate), reason(verdict));
    if verdict == Verdict::Undecided {
        let half = if estimate.value < low { estimate.high - estimate.value } else { estimate.value - estimate.low };
        let rounds = estimate.n as f64 / n_comparisons.max(1) as f64;
        // A third more than that, because the interval of the next run will not be exactly as narrow.
        let enough = (rounds * (half / (estimate.value - low)).powi(2) * 1.33).ceil();
        if enough <= MOST_ROUNDS {
            finding.reason = format!("the interval straddles the claim; {}", finding.reason);
            finding.decide = Some(format!("ternbench claims -r {}", enough.max(rounds + 1.0)));
        } else {
            finding.reason = format!(
                "the interval straddles the claim, closer to it than {MOST_ROUNDS} rounds could tell; {}",
                finding.reason
            );
        }
    }
    finding
}

fn is_subject(speed: &Speed, catalogue: &Catalogue) -> bool {
    speed.model.shape() == Some(&catalogue.subject().id) && speed.model.weights == "ternary" && speed.code.exact
}

/// Some layers of the subject alone: enough to compare its kernels with each other, not to say how fast it is.
fn is_slice(speed: &Speed, catalogue: &Catalogue) -> bool {
    let rest = speed.model.shape().and_then(|shape| shape.strip_prefix(&*catalogue.subject().id));
    rest.is_some_and(|rest| rest.ends_with("layer")) && speed.model.weights == "ternary" && speed.code.exact
}

fn is_f16(speed: &Speed, model: &PublishedModel) -> bool {
    // The dense 2B4T shape is a manifest of its own, named after the ternary one.
    let shape = speed.model.shape().unwrap_or("");
    (shape == model.id || shape.strip_suffix("-f16") == Some(&model.id)) && speed.model.weights == "f16"
}

/// The subject against each baseline that was measured.
fn against_baselines<'a>(
    evidence: &Evidence<'a>,
    catalogue: &'a Catalogue,
) -> Vec<(&'a PublishedModel, Comparison<'a>)> {
    let compare = |model| evidence.compare_decode(|speed| is_subject(speed, catalogue), |speed| is_f16(speed, model));
    catalogue.baselines().iter().filter_map(|model| Some((model, compare(model)?))).collect()
}

fn overall(comparisons: &[(&PublishedModel, Comparison<'_>)]) -> Option<Estimate> {
    let compared: Vec<Compared> = comparisons.iter().map(|(_, comparison)| comparison.compared.clone()).collect();
    stats::geometric_mean_ratio(&compared, stats::SEED)
}

fn list(comparisons: &[(&PublishedModel, Comparison<'_>)]) -> String {
    let one = |(model, comparison): &(&PublishedModel, Comparison<'_>)| {
        let ratio = comparison.estimate().map_or("no ratio".into(), show_ratio);
        format!("{} {ratio}{}", model.title, comparison.pairing())
    };
    comparisons.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// "Twice the speed of other models of its size."
pub(super) fn faster_than_baselines(evidence: &Evidence<'_>, catalogue: &Catalogue, low: f64) -> Finding {
    let comparisons = against_baselines(evidence, catalogue);
    let Some((first, estimate)) = comparisons.first().zip(overall(&comparisons)) else {
        return Finding::not_measured("no decode speed of the ternary model beside an F16 baseline");
    };
    let reach = comparisons.iter().filter(|(_, c)| c.estimate().is_some_and(|estimate| estimate.low >= low)).count();
    let mut conditions: Vec<String> = comparisons.iter().map(|(_, c)| c.conditions()).collect();
    conditions.dedup();
    judged(estimate, low, comparisons.len(), |_| {
        format!(
            "geometric mean over {} of {} baselines ({}, {}); {reach} of {} reach {low:.0}x alone: {}",
            comparisons.len(),
            catalogue.baselines().len(),
            conditions.join(" / "),
            first.1.left.code.kernel,
            comparisons.len(),
            list(&comparisons)
        )
    })
}

/// The ratios of the published latencies, with their rounding in the claim's favour.
pub(super) fn latency_ratios(evidence: &Evidence<'_>, catalogue: &Catalogue) -> Finding {
    let comparisons = against_baselines(evidence, catalogue);
    let own = catalogue.subject().published.latency_ms;
    let mean = |rounding: f64| {
        let ratio =
            |(model, _): &(&PublishedModel, Comparison<'_>)| (model.published.latency_ms - rounding) / (own + rounding);
        geometric_mean(&comparisons.iter().map(ratio).collect::<Vec<_>>())
    };
    let Some(((estimate, low), published)) = overall(&comparisons).zip(mean(0.5)).zip(mean(0.0)) else {
        return Finding::not_measured("no decode speed of the ternary model beside an F16 baseline");
    };
    let one = |(model, comparison): &(&PublishedModel, Comparison<'_>)| {
        format!("{} {:.2}x (published {:.2}x)", model.title, comparison.ratio(), model.published.latency_ms / own)
    };
    judged(estimate, low, comparisons.len(), |_| {
        format!(
            "geometric mean against {published:.2}x published for the same {}; by baseline: {}",
            if comparisons.len() == 1 { "baseline".into() } else { format!("{} baselines", comparisons.len()) },
            comparisons.iter().map(one).collect::<Vec<_>>().join("; ")
        )
    })
}

/// "29 ms a token", on the CPU that it was said of.
pub(super) fn absolute_latency(
    evidence: &Evidence<'_>,
    catalogue: &Catalogue,
    cpu: &str,
    n_threads: usize,
    ms: f64,
) -> Finding {
    let speeds = evidence
        .speeds
        .iter()
        .filter(|(_, speed)| is_subject(speed, catalogue) && speed.n_gen > 0 && speed.n_prompt == 0);
    let latency = |speed: &Speed| {
        let per_token: Vec<f64> =
            speed.samples.ns.iter().map(|&ns| ns as f64 / 1e6 / speed.samples.tokens.max(1) as f64).collect();
        stats::median_interval(&per_token)
    };
    let measured = speeds.filter_map(|&(record, speed)| Some((record, speed, latency(speed)?)));
    let there = |record: &Record, speed: &Speed| record.cpu.contains(cpu) && speed.n_threads == n_threads;
    let best = measured.min_by(|a, b| {
        let key = |(record, speed, latency): &(&Record, &Speed, Estimate)| {
            (!there(record, speed), speed.n_gen != 128, latency.value)
        };
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let Some((record, speed, latency)) = best else {
        return Finding::not_measured("no decode speed of the ternary model");
    };
    let shown = format!("{:.1} ms ({:.1} to {:.1})", latency.value, latency.low, latency.high);
    let threads = if speed.n_threads == 1 { "1 thread".into() } else { format!("{} threads", speed.n_threads) };
    let conditions = format!("{}, {threads}, {}, {}", record.cpu, speed.workload, speed.code.kernel);
    if !there(record, speed) {
        let reason = format!(
            "published for another CPU or thread count; here: {conditions}. The ratios are judged in the next row"
        );
        return Finding::new(Verdict::NotComparable, shown, reason);
    }
    let verdict = Verdict::at_least(latency.recip(), 1.0 / (ms + 0.5));
    Finding::new(verdict, shown, conditions)
}

/// "2.37x to 6.17x over F16" of the same shape, on one architecture.
pub(super) fn same_shape_f16(
    evidence: &Evidence<'_>,
    catalogue: &Catalogue,
    arch: &str,
    low: f64,
    high: f64,
) -> Finding {
    if !evidence.archs.is_empty() && !evidence.archs.contains(arch) {
        let here = evidence.archs.iter().copied().collect::<Vec<_>>().join(", ");
        return Finding::new(Verdict::NotComparable, "–", format!("this machine is {here}, the claim is about {arch}"));
    }
    let subject = catalogue.subject();
    let on_arch = Evidence {
        speeds: evidence.speeds.iter().copied().filter(|(record, _)| record.arch == arch).collect(),
        ..Evidence::default()
    };
    let comparison = on_arch.compare_decode(|speed| is_subject(speed, catalogue), |speed| is_f16(speed, subject));
    let Some((comparison, estimate)) = comparison.and_then(|c| c.estimate().map(|estimate| (c, estimate))) else {
        return Finding::not_measured(format!("the shape of {} in F16 was not run", subject.title));
    };
    judged(estimate, low, 1, |verdict| {
        let place = match verdict {
            Verdict::Reproduced if estimate.low > high => "above the published range; ",
            Verdict::Reproduced => "at or above the low end; ",
            Verdict::NotReproduced => "below the low end; ",
            _ => "",
        };
        format!(
            "{place}{} against ternbench's own F16 code ({}{})",
            comparison.left.code.kernel,
            comparison.conditions(),
            comparison.pairing()
        )
    })
}

/// "I2_S up to 6.25x over F16."
pub(super) fn up_to_f16(evidence: &Evidence<'_>, catalogue: &Catalogue, layout: &str, ratio: f64) -> Finding {
    let of_layout = |speed: &Speed| is_subject(speed, catalogue) && layout_of(&speed.code.kernel) == layout;
    let comparison = evidence.compare_decode(of_layout, |speed| is_f16(speed, catalogue.subject()));
    up_to(
        comparison,
        ratio,
        format!("no {layout} kernel beside the shape of {} in F16 was run", catalogue.subject().title),
    )
}

/// "TL2 up to 2.32x over T-MAC."
pub(super) fn up_to_kernel(
    evidence: &Evidence<'_>,
    catalogue: &Catalogue,
    layout: &str,
    over: &str,
    ratio: f64,
) -> Finding {
    let compare = |runs: fn(&Speed, &Catalogue) -> bool| {
        let of = |layout: &str, speed: &Speed| runs(speed, catalogue) && layout_of(&speed.code.kernel) == layout;
        evidence.compare_decode(|speed| of(layout, speed), |speed| of(over, speed))
    };
    let comparison = compare(is_subject).or_else(|| compare(is_slice));
    up_to(comparison, ratio, format!("no speeds of both a {layout} and a {over} kernel"))
}

fn up_to(comparison: Option<Comparison<'_>>, ratio: f64, missing: String) -> Finding {
    let Some((comparison, estimate)) = comparison.and_then(|c| c.estimate().map(|estimate| (c, estimate))) else {
        return Finding::not_measured(missing);
    };
    let names = format!(
        "{} against {} ({}{}) on {}",
        comparison.left.code.kernel,
        comparison.right.code.kernel,
        comparison.conditions(),
        comparison.pairing(),
        comparison.left.model.model
    );
    match Verdict::at_least(estimate, ratio) {
        Verdict::Reproduced => Finding::new(Verdict::Reproduced, show_ratio(estimate), names),
        _ => {
            let reason =
                format!("an \"up to\" is about the best case somewhere, which one machine cannot refute: {names}");
            Finding::new(Verdict::NotComparable, show_ratio(estimate), reason)
        }
    }
}
