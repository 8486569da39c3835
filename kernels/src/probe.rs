//! What the machine can do at most: multiply-adds in registers, and bytes read from memory.
//!
//! Every result is printed as a share of one of these limits, and a result above its limit is refused as impossible, so each
//! probe runs the bare instructions with nothing around them, tries several ways, and reports its best repetition.

#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use crate::bytes::AlignedBytes;
use crate::team::Team;

/// A measured maximum.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// The instruction mix, or the way of reading, that reached it.
    pub method: &'static str,
    /// The best sample: multiply-adds per second or bytes per second, all threads together.
    pub per_s: f64,
    /// Every repetition of that method, in the order taken.
    pub samples: Vec<f64>,
}

/// What multiply-adds are of: each kind has its own peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// int8 products summed into wider lanes.
    Int8,
    /// int8 with a trit each: by such products, or by additions from tables of what a few trits make of them, whichever is faster here.
    Ternary,
    /// f32, fused.
    F32,
    /// bf16 products summed into f32.
    Bf16,
    /// Numbers that are sums of two bf16: three such products for each.
    SplitBf16,
}

impl Arithmetic {
    /// Multiply-adds of the hardware for one of this kind.
    pub fn products(self) -> f64 {
        match self {
            Self::Int8 | Self::Ternary | Self::F32 | Self::Bf16 => 1.0,
            Self::SplitBf16 => 3.0,
        }
    }
}

/// Peak multiply-adds per second of the team, operands in registers.
#[derive(Clone, Debug, PartialEq)]
pub struct MacPeak {
    /// int8 products summed into wider lanes, by the instructions the fastest kernels here use.
    pub int8: Peak,
    /// Those of four trits at a time that an addition from a table in the L1 cache stands for, one a lane (Vec-LUT, arXiv 2512.06443), where a
    /// kernel does that.
    pub tables: Option<Peak>,
    /// f32 fused multiply-adds.
    pub f32: Peak,
    /// bf16 products summed into f32, where the CPU has an instruction for them.
    pub bf16: Option<Peak>,
}

/// Measures for about `seconds` in total. Call it from the closure of [`crate::Pool::run`].
pub fn mac_peak(team: &Team, seconds: f64) -> MacPeak {
    let (bf16, tables) = (bf16_loops(), table_loops());
    let seconds = seconds / (2 + usize::from(!bf16.is_empty()) + usize::from(!tables.is_empty())) as f64;
    let where_any = |loops: Vec<MacLoop>| (!loops.is_empty()).then(|| best_loop(team, seconds, &loops));
    MacPeak {
        int8: best_loop(team, seconds, &int8_loops()),
        tables: where_any(tables),
        f32: best_loop(team, seconds, &f32_loops()),
        bf16: where_any(bf16),
    }
}

/// Multiply-adds per second that last by `method`, one that [`mac_peak`] named, right now: the better of two samples, some 10 ms in all. `None`
/// where nothing here is called that. Call it from the closure of [`crate::Pool::run`].
pub fn macs_now(team: &Team, arithmetic: Arithmetic, method: &str) -> Option<f64> {
    let loops = match arithmetic {
        Arithmetic::Int8 => int8_loops(),
        Arithmetic::Ternary => int8_loops().into_iter().chain(table_loops()).collect(),
        Arithmetic::F32 => f32_loops(),
        Arithmetic::Bf16 | Arithmetic::SplitBf16 => bf16_loops(),
    };
    let l = loops.iter().find(|l| l.method == method)?;
    // Longer than bursts of the clock, up to 15 % above what lasts on Emerald Rapids.
    Some(measure_loop(team, 0.0, 2, Duration::from_millis(4), l).per_s / arithmetic.products())
}

/// Bytes per second that the team reads from a buffer of `buffer_bytes`, which should be several times the last-level cache
/// (256 MB and more), measured for about `seconds`. Call it from the closure of [`crate::Pool::run`].
///
/// A sample is the next 64 MB of the buffer per thread. Long ones hide what the machine can do on a busy day (whole passes gave
/// 10 GB/s where kernels were timed at 22); short ones of 8 MB catch bursts of 27 GB/s where nothing sustains more than 20.
pub fn read_bandwidth(team: &Team, buffer_bytes: usize, seconds: f64) -> Peak {
    let n_threads = team.n_threads();
    let n_rounds = (buffer_bytes / n_threads / STRETCH_BYTES).max(1);
    let mut buffer = AlignedBytes::zeroed(n_rounds * n_threads * STRETCH_BYTES);
    // Pages that nobody wrote to are all the same page of zeros, which the cache holds.
    buffer.fill(1);
    let lines: &[Line] = buffer.as_chunks().0;
    let mut rounds = lines.chunks_exact(n_threads * STRETCH_BYTES / size_of::<Line>()).cycle();
    let mut peaks: Vec<Peak> =
        READS.iter().map(|(method, _)| Peak { method, per_s: 0.0, samples: Vec::new() }).collect();
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while peaks[0].samples.len() < 3 || Instant::now() < end {
        for (peak, (_, read)) in peaks.iter_mut().zip(READS) {
            let Some(round) = rounds.next() else { continue };
            let stretch = |thread: usize| &round[thread * round.len() / n_threads..][..round.len() / n_threads];
            let elapsed = time_together(team, |thread| read(stretch(thread)));
            peak.add((n_threads * STRETCH_BYTES) as f64 / elapsed.as_secs_f64());
        }
    }
    best(peaks)
}

impl Peak {
    fn add(&mut self, per_s: f64) {
        self.per_s = self.per_s.max(per_s);
        self.samples.push(per_s);
    }
}

fn best(peaks: Vec<Peak>) -> Peak {
    peaks.into_iter().max_by(|a, b| a.per_s.total_cmp(&b.per_s)).expect("there is at least one way")
}

/// Runs `f(thread)` once on every worker, starting together; the time from the first start to the last end.
fn time_together(team: &Team, f: impl Fn(usize) -> u64 + Sync) -> Duration {
    let n_threads = team.n_threads();
    let (ready, origin) = (Barrier::new(n_threads), Instant::now());
    let (first_start, last_end) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    let now = || origin.elapsed().as_nanos() as u64;
    team.split(n_threads, 1, |threads| {
        for thread in threads {
            // Nobody passes before all have come, so every worker takes exactly one item.
            ready.wait();
            first_start.fetch_min(now(), Ordering::Relaxed);
            std::hint::black_box(f(thread));
            last_end.fetch_max(now(), Ordering::Relaxed);
        }
    });
    Duration::from_nanos(last_end.into_inner().saturating_sub(first_start.into_inner()).max(1))
}

/// A loop of a known instruction mix.
struct MacLoop {
    method: &'static str,
    /// Multiply-adds of one round.
    macs_per_round: u64,
    /// Runs that many rounds (at least one); what it returns only keeps it alive.
    run: fn(u64) -> u64,
}

fn best_loop(team: &Team, seconds: f64, loops: &[MacLoop]) -> Peak {
    let seconds = seconds / loops.len() as f64;
    // Repetitions of about a millisecond: short enough that some fall between two disturbances, or into a burst of the clock. What is
    // impossible is judged by the best.
    let least = Duration::from_micros(500);
    best(loops.iter().map(|l| measure_loop(team, seconds, 5, least, l)).collect())
}

/// Takes `n_samples` or more, for at least so many seconds, of at least `least` each.
fn measure_loop(team: &Team, seconds: f64, n_samples: usize, least: Duration, l: &MacLoop) -> Peak {
    let mut peak = Peak { method: l.method, per_s: 0.0, samples: Vec::new() };
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut rounds = 1000;
    while peak.samples.len() < n_samples || Instant::now() < end {
        let elapsed = time_together(team, |_| (l.run)(rounds));
        if elapsed < least {
            rounds *= 2;
            continue;
        }
        peak.add((rounds * l.macs_per_round * team.n_threads() as u64) as f64 / elapsed.as_secs_f64());
    }
    peak
}

/// The ways to multiply int8 here. The best counts, so a CPU on which a wide register is no faster is measured fairly.
fn int8_loops() -> Vec<MacLoop> {
    let mut loops = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{AmxInt8, Avx2, Avx512Vnni, Feature, Token};
        if Avx2::detect().is_some() {
            let run = x86_64::maddubs_paddw;
            loops.push(MacLoop { method: "vpmaddubsw + vpaddw, 256 bit", macs_per_round: 8 * 32, run });
        }
        if Feature::AvxVnni.is_detected() {
            loops.push(MacLoop { method: "vpdpbusd, 256 bit", macs_per_round: 12 * 32, run: x86_64::vnni_256 });
        }
        if Avx512Vnni::detect().is_some() {
            loops.push(MacLoop { method: "vpdpbusd, 512 bit", macs_per_round: 12 * 64, run: x86_64::vnni_512 });
        }
        if AmxInt8::detect().is_some() {
            loops.push(MacLoop {
                method: "tdpbssd, 16 x 64 x 16",
                macs_per_round: 4 * 16 * 64 * 16,
                run: x86_64::amx_int8,
            });
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use crate::isa::{NeonDot, Token};
        if NeonDot::detect().is_some() {
            loops.push(MacLoop { method: "sdot, 128 bit", macs_per_round: 16 * 16, run: aarch64::sdot });
        }
        loops.push(MacLoop { method: "smlal, 128 bit", macs_per_round: 16 * 8, run: aarch64::smlal });
    }
    if loops.is_empty() {
        loops.push(MacLoop { method: "portable int8 loop", macs_per_round: PORTABLE_LANES as u64, run: portable_int8 });
    }
    loops
}

/// The ways to add int16 from tables here, as wide as the kernels that do it.
fn table_loops() -> Vec<MacLoop> {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{Avx2, Avx512Bw, Token};
        let mut loops = Vec::new();
        if Avx2::detect().is_some() {
            loops.push(MacLoop {
                method: "vpaddw from L1, 256 bit",
                macs_per_round: 12 * 16 * 4,
                run: x86_64::tables_256,
            });
        }
        if Avx512Bw::detect().is_some() {
            loops.push(MacLoop {
                method: "vpaddw from L1, 512 bit",
                macs_per_round: 12 * 32 * 4,
                run: x86_64::tables_512,
            });
        }
        loops
    }
    #[cfg(target_arch = "aarch64")]
    return vec![MacLoop { method: "ldr + add from L1, 128 bit", macs_per_round: 8 * 8 * 4, run: aarch64::tables }];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

fn f32_loops() -> Vec<MacLoop> {
    let mut loops = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{Avx2, Feature, Token};
        if Avx2::detect().is_some() {
            loops.push(MacLoop { method: "vfmadd231ps, 256 bit", macs_per_round: 12 * 8, run: x86_64::fma_256 });
        }
        if Feature::Avx512f.is_detected() {
            loops.push(MacLoop { method: "vfmadd231ps, 512 bit", macs_per_round: 12 * 16, run: x86_64::fma_512 });
        }
    }
    #[cfg(target_arch = "aarch64")]
    loops.push(MacLoop { method: "fmla, 128 bit", macs_per_round: 16 * 4, run: aarch64::fmla });
    if loops.is_empty() {
        loops.push(MacLoop { method: "portable f32 loop", macs_per_round: PORTABLE_LANES as u64, run: portable_f32 });
    }
    loops
}

/// Whether this CPU does more multiply-adds a second of bf16 than of f32. By `vdpbf16ps` Emerald Rapids does half as many, by tiles a Xeon does
/// fifteen times as many; on Zen 4 llama.cpp's BF16, which uses it, is 1.7 times as fast as its F16.
pub fn bf16_pays() -> bool {
    static PAYS: OnceLock<bool> = OnceLock::new();
    // The best of a few runs of some 10 µs: the two differ by a factor of two.
    let macs_per_s = |loops: Vec<MacLoop>| {
        let runs = loops.iter().flat_map(|l| std::iter::repeat_n(l, 10));
        let speeds = runs.map(|l| {
            let start = Instant::now();
            (l.run)(2000);
            l.macs_per_round as f64 * 2000.0 / start.elapsed().as_secs_f64()
        });
        speeds.fold(0.0, f64::max)
    };
    *PAYS.get_or_init(|| macs_per_s(bf16_loops()) > macs_per_s(f32_loops()))
}

/// The ways to multiply bf16; none on most CPUs.
fn bf16_loops() -> Vec<MacLoop> {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::{AmxBf16, Avx512Bf16, Token};
        let mut loops = Vec::new();
        if Avx512Bf16::detect().is_some() {
            loops.push(MacLoop { method: "vdpbf16ps, 512 bit", macs_per_round: 12 * 32, run: x86_64::bf16_512 });
        }
        if AmxBf16::detect().is_some() {
            let macs_per_round = 4 * 16 * 32 * 16;
            loops.push(MacLoop { method: "tdpbf16ps, 16 x 32 x 16", macs_per_round, run: x86_64::amx_bf16 });
        }
        loops
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    //! Sixteen independent chains of one instruction.

    macro_rules! neon_loop {
        ($name:ident, $directive:literal, $op:literal, $acc:literal, $operands:literal) => {
            pub fn $name(rounds: u64) -> u64 {
                // SAFETY: touches no memory and no stack, declares the registers it overwrites, and ends after
                // `rounds >= 1` rounds. Callers list it only where the CPU has its instructions.
                unsafe {
                    std::arch::asm!(
                        $directive,
                        "2:",
                        concat!($op, " v0.", $acc, $operands), concat!($op, " v1.", $acc, $operands),
                        concat!($op, " v2.", $acc, $operands), concat!($op, " v3.", $acc, $operands),
                        concat!($op, " v4.", $acc, $operands), concat!($op, " v5.", $acc, $operands),
                        concat!($op, " v6.", $acc, $operands), concat!($op, " v7.", $acc, $operands),
                        concat!($op, " v8.", $acc, $operands), concat!($op, " v9.", $acc, $operands),
                        concat!($op, " v10.", $acc, $operands), concat!($op, " v11.", $acc, $operands),
                        concat!($op, " v12.", $acc, $operands), concat!($op, " v13.", $acc, $operands),
                        concat!($op, " v14.", $acc, $operands), concat!($op, " v15.", $acc, $operands),
                        "subs {rounds}, {rounds}, #1",
                        "b.ne 2b",
                        rounds = inout(reg) rounds => _,
                        out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                        out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                        out("v14") _, out("v15") _,
                        options(nomem, nostack),
                    );
                }
                0
            }
        };
    }

    /// Eight additions of what is loaded.
    pub fn tables(rounds: u64) -> u64 {
        let table = [0u8; 128];
        // SAFETY: reads the table, touches no other memory and no stack, declares the registers it overwrites, and ends after `rounds >= 1`
        // rounds. NEON is part of AArch64.
        unsafe {
            std::arch::asm!(
                "2:",
                "ldp q16, q17, [{table}]", "ldp q18, q19, [{table}, #32]",
                "ldp q20, q21, [{table}, #64]", "ldp q22, q23, [{table}, #96]",
                "add v0.8h, v0.8h, v16.8h", "add v1.8h, v1.8h, v17.8h", "add v2.8h, v2.8h, v18.8h",
                "add v3.8h, v3.8h, v19.8h", "add v4.8h, v4.8h, v20.8h", "add v5.8h, v5.8h, v21.8h",
                "add v6.8h, v6.8h, v22.8h", "add v7.8h, v7.8h, v23.8h",
                "subs {rounds}, {rounds}, #1",
                "b.ne 2b",
                table = in(reg) table.as_ptr(),
                rounds = inout(reg) rounds => _,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
                options(readonly, nostack),
            );
        }
        0
    }

    neon_loop!(sdot, ".arch_extension dotprod", "sdot", "4s", ", v30.16b, v31.16b");
    neon_loop!(smlal, "", "smlal", "8h", ", v30.8b, v31.8b");
    neon_loop!(fmla, "", "fmla", "4s", ", v30.4s, v31.4s");
}

/// Values per round of the portable loops.
const PORTABLE_LANES: usize = 256;

fn portable_int8(rounds: u64) -> u64 {
    let (w, x) = std::hint::black_box(([1i8; PORTABLE_LANES], [3i8; PORTABLE_LANES]));
    let mut sums = [0i32; PORTABLE_LANES];
    for _ in 0..rounds {
        for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
            *sum = sum.wrapping_add(i32::from(i16::from(w) * i16::from(x)));
        }
        sums = std::hint::black_box(sums);
    }
    sums.iter().fold(0, |all, &sum| all ^ u64::from(sum.cast_unsigned()))
}

fn portable_f32(rounds: u64) -> u64 {
    let (w, x) = std::hint::black_box(([1f32; PORTABLE_LANES], [3f32; PORTABLE_LANES]));
    let mut sums = [0f32; PORTABLE_LANES];
    for _ in 0..rounds {
        for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
            *sum += w * x;
        }
        sums = std::hint::black_box(sums);
    }
    sums.iter().fold(0, |all, &sum| all ^ u64::from(sum.to_bits()))
}

/// Two cache lines, what neighbouring-line prefetchers fetch together.
type Line = [u8; 128];

/// Bytes that a worker reads for one sample.
const STRETCH_BYTES: usize = 64 << 20;

/// Ways to read. Which one wins differs between CPUs; on Zen 3 one stream stops at 15 GB/s of 26.
type Read = fn(&[Line]) -> u64;
const READS: &[(&str, Read)] = &[
    ("1 stream", read::<1, 0>),
    ("1 stream, prefetch 1 KB ahead", read::<1, 1024>),
    ("1 stream, prefetch 4 KB ahead", read::<1, 4096>),
    ("1 stream, prefetch 1, 3 and 16 KB ahead", read::<1, THREE>),
    ("2 streams", read::<2, 0>),
    ("2 streams, prefetch 2 KB ahead", read::<2, 2048>),
    ("4 streams", read::<4, 0>),
    ("4 streams, prefetch 1 KB ahead", read::<4, 1024>),
    ("4 streams, prefetch 2 KB ahead", read::<4, 2048>),
    ("8 streams", read::<8, 0>),
];

/// In the place of a distance: several of them.
const THREE: usize = usize::MAX;

fn read<const STREAMS: usize, const AHEAD: usize>(part: &[Line]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<const STREAMS: usize, const AHEAD: usize>(part: &[Line]) -> u64 {
            read_streams::<STREAMS, AHEAD>(part)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, just tested.
            return unsafe { avx2::<STREAMS, AHEAD>(part) };
        }
    }
    read_streams::<STREAMS, AHEAD>(part)
}

/// Combines every byte of `part`, from `STREAMS` equal stretches in turn. Plain code, vectorised for the caller's features.
#[inline(always)]
fn read_streams<const STREAMS: usize, const AHEAD: usize>(part: &[Line]) -> u64 {
    let length = part.len() / STREAMS;
    let mut lanes = [0u64; 16];
    for i in 0..length {
        for stream in 0..STREAMS {
            let line = &part[stream * length + i];
            #[cfg(target_arch = "x86_64")]
            if AHEAD == THREE {
                crate::arch::x86_64::ask_ahead(line);
            } else if AHEAD > 0 {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                let ahead = line.as_ptr().wrapping_add(AHEAD);
                // SAFETY: a prefetch reads nothing into the program and never faults, whatever the address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
                }
            }
            for (lane, bytes) in lanes.iter_mut().zip(line.as_chunks::<8>().0) {
                *lane ^= u64::from_ne_bytes(*bytes);
            }
        }
    }
    lanes.iter().fold(0, |all, lane| all ^ lane)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Pool;

    #[test]
    fn every_way_of_reading_reads_every_byte() {
        for at in [0, 5, 127, 128, 4095, 16383] {
            let mut buffer = vec![0u8; 16384];
            buffer[at] = 3;
            for (method, read) in READS {
                assert_eq!(read(buffer.as_chunks().0), 3 << (8 * (at % 8)), "{method}, byte {at}");
            }
        }
    }

    #[test]
    fn peaks_are_the_best_of_their_samples() {
        for n_threads in [1, 2] {
            let (macs, read) =
                Pool::new(n_threads).unwrap().run(|team| (mac_peak(team, 0.01), read_bandwidth(team, 64 << 20, 0.01)));
            for peak in [macs.int8, macs.f32, read].into_iter().chain(macs.bf16).chain(macs.tables) {
                assert!(peak.per_s.is_finite() && peak.per_s > 0.0 && peak.samples.len() >= 3, "{peak:?}");
                assert_eq!(peak.samples.iter().copied().fold(0.0, f64::max), peak.per_s);
            }
        }
    }
}
