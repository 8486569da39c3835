//! Statistics of an evaluation.

use serde::Serialize;

/// A score over all items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// What was measured: `acc`, `acc_norm`, an extractor's name, `perplexity`.
    pub name: String,
    /// The score; accuracies lie between 0 and 1.
    pub value: f64,
    /// Its standard error, where there are enough items for one.
    pub stderr: Option<f64>,
}

/// Counts right answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// Items seen.
    pub n: usize,
    /// Right ones.
    pub correct: usize,
}

impl Accuracy {
    /// One more item.
    pub fn add(&mut self, correct: bool) {
        self.n += 1;
        self.correct += usize::from(correct);
    }

    /// The share of right answers; 0 without any.
    pub fn value(self) -> f64 {
        if self.n == 0 { 0.0 } else { self.correct as f64 / self.n as f64 }
    }

    /// `sqrt(p (1 - p) / (n - 1))`, the sample standard error of a mean of zeros and ones.
    pub fn stderr(self) -> Option<f64> {
        let p = self.value();
        (self.n > 1).then(|| (p * (1.0 - p) / (self.n - 1) as f64).sqrt())
    }

    /// As a named score.
    pub fn metric(self, name: &str) -> Metric {
        Metric { name: name.to_owned(), value: self.value(), stderr: self.stderr() }
    }
}

/// Sums of negative log-likelihoods per token, for a perplexity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogLoss {
    /// Tokens scored.
    pub n: usize,
    /// Sum of the tokens' negative log-likelihoods.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl LogLoss {
    /// One more token.
    pub fn add(&mut self, log_prob: f32) {
        let loss = -f64::from(log_prob);
        self.n += 1;
        self.sum += loss;
        self.squares += loss * loss;
    }

    /// The tokens of `other` as well.
    pub fn merge(&mut self, other: Self) {
        self.n += other.n;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// `exp` of the mean loss, and its standard error by the delta method, as llama.cpp reports them.
    pub fn perplexity(self) -> Metric {
        let mean = self.sum / self.n.max(1) as f64;
        let value = mean.exp();
        let variance = self.squares / self.n.max(1) as f64 - mean * mean;
        let stderr = (self.n > 1).then(|| value * (variance.max(0.0) / (self.n - 1) as f64).sqrt());
        Metric { name: "perplexity".to_owned(), value, stderr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_hand() {
        let mut accuracy = Accuracy::default();
        assert_eq!((accuracy.value(), accuracy.stderr()), (0.0, None));
        accuracy.add(true);
        assert_eq!((accuracy.value(), accuracy.stderr()), (1.0, None));
        for correct in [true, true, false] {
            accuracy.add(correct);
        }
        // p = 3/4, n = 4: sqrt(3/16 / 3) = 1/4.
        assert_eq!((accuracy.value(), accuracy.stderr()), (0.75, Some(0.25)));
    }

    #[test]
    fn perplexity_by_hand() {
        let mut loss = LogLoss::default();
        for p in [0.5_f32, 0.125] {
            loss.add(p.ln());
        }
        let metric = loss.perplexity();
        // The geometric mean of 1/2 and 1/8 is 1/4; the losses differ from their mean by ln 2 each.
        assert!((metric.value - 4.0).abs() < 1e-6);
        assert!((metric.stderr.unwrap() - 4.0 * 2.0_f64.ln()).abs() < 1e-5);
    }
}
