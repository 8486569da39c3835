//! The physics check: how fast the hardware allows a workload to be, and refusing results that are faster.
//!
//! A token cannot be made before its bytes are read and its multiply-adds are done, so
//! `s/token >= max(bytes_per_token / bandwidth, macs_per_token / macs_per_s + fmas_per_token / f32_fmas_per_s)`, with all peaks measured
//! on the same threads just before. The peak of multiply-adds is that of the layers' arithmetic: int8 for ternary ones, by products or by
//! tables of trits, f32 for dense ones, or int8 or bf16 where their kernel multiplies that. Attention is in floats beside them. A thread does
//! one after the other, so their times add up.

/// A result may exceed its limit by this much before it is refused: what two runs of the probes on a shared machine
/// differ by.
pub const TOLERANCE: f64 = 0.05;

/// The measured peaks that bound a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Reading memory: the best sample of the bandwidth probe.
    pub bandwidth_bytes_per_s: f64,
    /// Multiply-adds: the best sample of the MAC probe, to refuse by, or what lasted beside the run, to take shares of.
    pub macs_per_s: f64,
    /// Fused multiply-adds of floats; 0 in old records, where they bound nothing.
    pub f32_fmas_per_s: f64,
    /// Last-level cache, which bytes can be read from a second time without going to memory.
    pub cache_bytes: u64,
}

/// What one token costs at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes that must be read for it: weights divided by the tokens that share one reading, plus its KV cache.
    pub bytes_per_token: u64,
    /// Multiply-adds in the arithmetic of the layers.
    pub macs_per_token: u64,
    /// Multiply-adds of floats beside those: attention, and what a ternary model's head does in floats.
    pub fmas_per_token: u64,
}

impl Work {
    /// Seconds of arithmetic, as far as the peaks are known.
    fn arithmetic_s(self, peaks: Peaks) -> f64 {
        let time = |count: u64, peak: f64| if peak > 0.0 { count as f64 / peak } else { 0.0 };
        time(self.macs_per_token, peaks.macs_per_s) + time(self.fmas_per_token, peaks.f32_fmas_per_s)
    }
}

/// Which peak binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Memory bandwidth.
    Bandwidth,
    /// Arithmetic.
    Macs,
}

impl Bound {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "memory bandwidth",
            Self::Macs => "multiply-adds",
        }
    }
}

/// The most tokens per second that the peaks allow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Which peak sets it.
    pub bound: Bound,
}

impl Limit {
    /// The share of the limit that a speed reaches: 1 is the limit.
    pub fn share(&self, tokens_per_s: f64) -> f64 {
        tokens_per_s / self.tokens_per_s
    }
}

/// The limit of `work` under `peaks`; `None` where work or peaks are zero or unknown.
pub fn limit(work: Work, peaks: Peaks) -> Option<Limit> {
    limit_of(work.bytes_per_token, work, peaks)
}

fn limit_of(bytes: u64, work: Work, peaks: Peaks) -> Option<Limit> {
    let limit = |seconds: f64, bound| {
        (seconds.is_finite() && seconds > 0.0).then(|| Limit { tokens_per_s: 1.0 / seconds, bound })
    };
    let bandwidth = limit(bytes as f64 / peaks.bandwidth_bytes_per_s, Bound::Bandwidth);
    let macs = limit(work.arithmetic_s(peaks), Bound::Macs);
    bandwidth.into_iter().chain(macs).min_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s))
}

/// Why a speed cannot be true, or `None` when it can.
///
/// Bytes that the last-level cache could keep from one token to the next are not counted, so a model that fits in cache
/// is held to the arithmetic limit alone. Where a peak was not measured it cannot refuse anything.
pub fn refuse(tokens_per_s: f64, work: Work, peaks: Peaks) -> Option<String> {
    if !tokens_per_s.is_finite() {
        return Some("impossible: the time was zero".into());
    }
    let bytes = work.bytes_per_token.saturating_sub(peaks.cache_bytes);
    let limit = limit_of(bytes, work, peaks)?;
    if tokens_per_s <= limit.tokens_per_s * (1.0 + TOLERANCE) {
        return None;
    }
    let (needs, has, unit) = match limit.bound {
        Bound::Bandwidth => (tokens_per_s * bytes as f64, peaks.bandwidth_bytes_per_s, "GB/s"),
        // Those of floats count as so many of the others as take their time.
        Bound::Macs => (tokens_per_s * work.arithmetic_s(peaks) * peaks.macs_per_s, peaks.macs_per_s, "G MAC/s"),
    };
    Some(format!(
        "impossible: {tokens_per_s:.1} tok/s needs {:.1} {unit} of {}, measured peak {:.1} {unit} (limit {:.1} tok/s)",
        needs / 1e9,
        limit.bound.name(),
        has / 1e9,
        limit.tokens_per_s
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2B4T in I2_S with its F16 lm head, decoding.
    const DECODE: Work = Work { bytes_per_token: 1_178_000_000, macs_per_token: 2_412_000_000, fmas_per_token: 0 };

    #[test]
    fn the_limits_of_the_reference_machine() {
        let peaks = Peaks { bandwidth_bytes_per_s: 28e9, macs_per_s: 232e9, ..Peaks::default() };
        let decode = limit(DECODE, peaks).expect("known");
        assert_eq!(decode.bound, Bound::Bandwidth);
        assert!((decode.tokens_per_s - 23.8).abs() < 0.1);
        assert!((decode.share(11.9) - 0.5).abs() < 0.01);
        let work = Work { bytes_per_token: 4_000_000, macs_per_token: 2_084_000_000, fmas_per_token: 39_000_000 };
        let prefill = limit(work, peaks).expect("known");
        assert_eq!(prefill.bound, Bound::Macs);
        assert!((prefill.tokens_per_s - 111.3).abs() < 0.1, "no peak of floats, no bound by them");
        let prefill = limit(work, Peaks { f32_fmas_per_s: 39e9, ..peaks }).expect("known");
        assert!((prefill.tokens_per_s - 100.2).abs() < 0.1, "a millisecond more");
        let reason = refuse(120.0, work, Peaks { f32_fmas_per_s: 39e9, ..peaks }).expect("refused");
        assert!(reason.contains("needs 277.9 G MAC/s of multiply-adds, measured peak 232.0 G MAC/s"), "{reason}");
    }

    #[test]
    fn the_published_162_tokens_per_s_on_a_rock_5b_is_impossible() {
        // RK3588: LPDDR4X, about 30 GB/s at best; 3 MB of last-level cache. Ternary weights alone at 2 bits are 0.521 GB;
        // even at the published 0.4 GB, and with the lm head at 0.6 GB, 162 tok/s would need some 160 GB/s.
        let peaks = Peaks { bandwidth_bytes_per_s: 30e9, macs_per_s: 400e9, cache_bytes: 3 << 20, ..Peaks::default() };
        let least = Work { bytes_per_token: 1_000_000_000, ..DECODE };
        let reason = refuse(162.0, least, peaks).expect("refused");
        assert!(reason.contains("needs 161.5 GB/s of memory bandwidth, measured peak 30.0 GB/s"), "{reason}");
        assert!(refuse(162.0, DECODE, peaks).is_some());
        assert_eq!(refuse(20.0, DECODE, peaks), None);
    }

    #[test]
    fn noise_of_the_probe_is_tolerated_and_no_more() {
        let peaks = Peaks { bandwidth_bytes_per_s: 100e9, macs_per_s: 1e15, ..Peaks::default() };
        let work = Work { bytes_per_token: 1_000_000_000, macs_per_token: 1, fmas_per_token: 0 };
        assert_eq!(refuse(104.9, work, peaks), None);
        assert!(refuse(105.1, work, peaks).is_some());
        assert!(refuse(f64::INFINITY, work, peaks).is_some());
    }

    #[test]
    fn what_fits_in_cache_is_held_to_arithmetic_alone() {
        let peaks = Peaks { bandwidth_bytes_per_s: 30e9, macs_per_s: 200e9, cache_bytes: 32 << 20, ..Peaks::default() };
        let tiny = Work { bytes_per_token: 1 << 20, macs_per_token: 4 << 20, fmas_per_token: 0 };
        assert_eq!(refuse(40_000.0, tiny, peaks), None);
        assert!(refuse(60_000.0, tiny, peaks).expect("refused").contains("multiply-adds"));
        assert_eq!(refuse(1e9, tiny, Peaks::default()), None);
    }
}
