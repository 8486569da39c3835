//! Rules about accuracy. Synthetic models and parts of a set never count.

use ternbench_measure::record::Accuracy;
use ternbench_measure::stats::Estimate;

use super::evidence::Evidence;
use crate::catalogue::Catalogue;
use crate::ledger::{Finding, Verdict};

/// The 0.975 quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The score over most items, with the index of its record.
fn of<'a>(evidence: &Evidence<'a>, shape: &str, task: &str) -> Option<(usize, &'a Accuracy)> {
    let fits = |(_, a): &&(usize, &Accuracy)| {
        a.model.shape() == Some(shape) && !a.model.is_synthetic() && a.task.split('@').next() == Some(task) && a.n > 0
    };
    evidence.accuracies.iter().filter(fits).copied().max_by_key(|(_, accuracy)| accuracy.n)
}

/// A share as percentage points.
fn in_points(share: Estimate) -> Estimate {
    Estimate { value: 100.0 * share.value, low: 100.0 * share.low, high: 100.0 * share.high, n: share.n }
}

/// The difference of two independent proportions, in points, with its 95 % interval: wider than the paired one.
fn lead(a: (u64, u64), b: (u64, u64)) -> Estimate {
    let share = |(correct, n): (u64, u64)| correct as f64 / n as f64;
    let variance = |(correct, n): (u64, u64)| share((correct, n)) * (1.0 - share((correct, n))) / n as f64;
    let value = 100.0 * (share(a) - share(b));
    let half = 100.0 * Z * (variance(a) + variance(b)).sqrt();
    Estimate { value, low: value - half, high: value + half, n: a.1.min(b.1) as usize }
}

/// "Above Llama 3.2 1B, Gemma 3 1B and Qwen2.5 1.5B."
pub(super) fn beats(
    evidence: &Evidence<'_>,
    catalogue: &Catalogue,
    task: &str,
    metric: &str,
    against: &[String],
) -> Finding {
    let score = |shape: &str| {
        let (index, accuracy) = of(evidence, shape, task)?;
        let correct =
            *accuracy.correct.get(metric).or_else(|| accuracy.correct.get(metric.trim_end_matches("_correct")))?;
        (correct <= accuracy.n).then_some((index, accuracy, (correct, accuracy.n)))
    };
    let Some((index, accuracy, own)) = score(&catalogue.subject().id) else {
        return Finding::not_measured(format!("no {task} score of real weights of {}", catalogue.subject().title));
    };
    let measured = format!("{:.2} ({} of {} items)", own.0 as f64 * 100.0 / own.1 as f64, own.1, accuracy.n_total);
    let paired = |other: usize| evidence.pairings.iter().find_map(|pairing| pairing.lead_of(index, other, metric));
    let leads = against.iter().filter_map(|shape| {
        let (other, _, score) = score(shape)?;
        let (lead, how) = match paired(other) {
            Some((share, p)) => (in_points(share), format!("McNemar p {p:.4}")),
            None => (lead(own, score), "unpaired".into()),
        };
        let title = catalogue.title(shape);
        Some((title, lead, format!("{title} {:+.1} ({:+.1} to {:+.1}, {how})", lead.value, lead.low, lead.high)))
    });
    let leads: Vec<(&str, Estimate, String)> = leads.collect();
    let list = leads.iter().map(|(.., words)| words.as_str()).collect::<Vec<_>>().join("; ");
    if accuracy.n < accuracy.n_total {
        return Finding::new(Verdict::NotMeasured, measured, format!("a part of the set only; lead in points: {list}"));
    }
    if let Some((title, ..)) = leads.iter().find(|(_, lead, _)| lead.high < 0.0) {
        return Finding::new(Verdict::NotReproduced, measured, format!("below {title}; lead in points: {list}"));
    }
    if leads.len() < against.len() {
        return Finding::new(
            Verdict::NotMeasured,
            measured,
            format!("{} of {} baselines scored; lead in points: {list}", leads.len(), against.len()),
        );
    }
    let sure = leads.iter().all(|(_, lead, _)| lead.low > 0.0);
    let verdict = if sure { Verdict::Reproduced } else { Verdict::Undecided };
    let doubt = if sure { "" } else { "a lead's interval holds 0; " };
    Finding::new(verdict, measured, format!("{doubt}lead in points: {list}"))
}

/// "Wikitext perplexity 17.1090 ± 0.1278."
pub(super) fn perplexity(
    evidence: &Evidence<'_>,
    catalogue: &Catalogue,
    task: &str,
    value: f64,
    error: f64,
) -> Finding {
    let accuracy = of(evidence, &catalogue.subject().id, task);
    let Some((accuracy, nll)) = accuracy.and_then(|(_, accuracy)| Some((accuracy, accuracy.nll_sum?))) else {
        return Finding::not_measured(format!("no {task} perplexity of real weights of {}", catalogue.subject().title));
    };
    let n = accuracy.n as f64;
    let mean = nll / n;
    // Delta method: the error of exp(mean) is exp(mean) times the error of the mean.
    let own_error =
        accuracy.nll_square_sum.map_or(0.0, |squares| mean.exp() * ((squares / n - mean * mean).max(0.0) / n).sqrt());
    let distance = (mean.exp() - value).abs();
    let both = Z * (own_error * own_error + error * error).sqrt();
    let verdict = if distance <= both { Verdict::Reproduced } else { Verdict::NotReproduced };
    let measured = format!("{:.4} ± {own_error:.4}", mean.exp());
    Finding::new(
        verdict,
        measured,
        format!("{distance:.3} from the published value, {both:.3} allowed by both errors ({} tokens)", accuracy.n),
    )
}
