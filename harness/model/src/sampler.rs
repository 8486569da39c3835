//! The choice of the next token: greedy, or seeded sampling.

/// How the next token is chosen from the logits.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    state: u64,
}

impl Sampler {
    /// Always the likeliest token; the first of equals.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, state: 0 }
    }

    /// Whether it always takes the likeliest token.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Samples from `softmax(logits / temperature)`, cut to the `top_k` likeliest tokens (0: no cut) and to the smallest set with
    /// probability `top_p`. The same seed gives the same choices.
    pub fn new(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> Self {
        Self { temperature, top_k, top_p, state: seed }
    }

    /// The next token.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.is_greedy() {
            return argmax(logits);
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_unstable_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if self.top_k > 0 {
            ids.truncate(self.top_k);
        }
        let best = logits[ids[0] as usize];
        let weight = |id: u32| f64::from((logits[id as usize] - best) / self.temperature).exp();
        let weights: Vec<f64> = ids.iter().map(|&id| weight(id)).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let n_kept = weights.iter().take_while(|&&w| {
            let more = kept < f64::from(self.top_p) * total;
            kept += w;
            more
        });
        let weights = &weights[..n_kept.count().max(1)];
        let mut left = self.next_unit() * weights.iter().sum::<f64>();
        for (&id, weight) in ids.iter().zip(weights) {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        ids[weights.len() - 1]
    }

    /// SplitMix64 (Steele et al. 2014), as a number in 0..1.
    fn next_unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// [`argmax`] of logits that are numbers (minus infinity is one); `None` for others, which come of a broken model.
pub fn greedy(logits: &[f32]) -> Option<u32> {
    are_logits(logits).then(|| argmax(logits))
}

/// Whether none is NaN or plus infinity.
pub fn are_logits(logits: &[f32]) -> bool {
    // No early exit, so that it becomes vector code.
    logits.iter().fold(true, |all, &logit| all & (logit < f32::INFINITY))
}

/// The index of the largest value; the first of equals; NaN never wins.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::greedy().sample(&[0.0, 2.0, f32::NAN, 2.0]), 1);
    }

    #[test]
    fn sampling_follows_the_distribution_and_the_seed() {
        let logits = [0.0, 1.0f32.ln() + 1.0, 0.0, -50.0];
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, 0, 1.0, seed);
            (0..4000).map(|_| sampler.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        let share = draw(7).iter().filter(|&&id| id == 1).count() as f64 / 4000.0;
        let expected = 1f64.exp() / (1f64.exp() + 2.0);
        assert!((share - expected).abs() < 0.03, "{share} {expected}");
        let mut narrow = Sampler::new(1.0, 0, 0.5, 1);
        assert!((0..100).all(|_| narrow.sample(&logits) == 1), "top_p keeps the likeliest only");
        let mut two = Sampler::new(5.0, 2, 1.0, 1);
        assert!((0..100).all(|_| two.sample(&logits) <= 1), "top_k keeps ids 1 and 0");
    }
}
