//! Kernels for x86-64.

pub mod amx;
pub mod avx2;
pub mod avx512bw;
pub mod avx512vbmi;
pub mod avx512vnni;
pub mod avxvnni;
mod dpbusd;

/// Asks for the cache line at `at`, which need not be mapped, into the caches that the hint `LEVEL` names.
#[inline(always)]
pub(crate) fn prefetch<const LEVEL: i32>(at: *const u8) {
    #[allow(unused_unsafe, reason = "the intrinsic became safe after Rust 1.89")]
    // SAFETY: a prefetch of any address has no effect but on the caches, and SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<LEVEL>(at.cast())
    };
}

/// Asks for what a loop that reads packed weights from end to end will need: from memory into the outer caches far ahead, as many lines
/// as a core can wait for and more, and from there into the L1 cache shortly ahead, so that loads never wait in the queue in which
/// the requests to memory wait. A request that finds no room is dropped, so each line is asked for once more in between.
///
/// On a Xeon with 480 MB of L3 cache whose core reads 19.5 GB/s, one token then read 18.0, with the second request 2, 3 or 4 KB ahead
/// alike; without it 13.8, without the first at best 16.2, without any 10.6. On an Emerald Rapids core that reads 16.6, two requests 16 and 5 KB
/// ahead gave 15.2, one 4 KB ahead 13.1, one 16 KB ahead 13.8; three were not timed there. On another, that reads 20, three gave 11 to 14: for one
/// token memory is read at several places now, see [`ask_ahead_in_streams`].
#[inline(always)]
pub(crate) fn ask_ahead<T>(at: &T) {
    const FAR: usize = 16 * 1024;
    const AGAIN: usize = 3 * 1024;
    const NEAR: usize = 1024;
    let start = std::ptr::from_ref(at).cast::<u8>();
    for line in (0..size_of::<T>()).step_by(64) {
        prefetch::<{ std::arch::x86_64::_MM_HINT_T2 }>(start.wrapping_add(FAR + line));
        prefetch::<{ std::arch::x86_64::_MM_HINT_T2 }>(start.wrapping_add(AGAIN + line));
        prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(start.wrapping_add(NEAR + line));
    }
}

/// How many bytes ahead of its loads a loop asks for memory at each of [`STREAMS`](crate::kernel::STREAMS) places: with 1, 3 and 4 KB one token of
/// t5 took up to 1.05 times as long on Emerald Rapids.
pub(crate) const AHEAD_IN_STREAMS: usize = 2048;

/// As [`ask_ahead`], for each of [`STREAMS`](crate::kernel::STREAMS) places that a loop reads side by side, far apart, so that each goes on where
/// it has asked for memory: one request is enough.
#[inline(always)]
pub(crate) fn ask_ahead_in_streams<T>(at: &T) {
    let start = std::ptr::from_ref(at).cast::<u8>();
    for line in (0..size_of::<T>()).step_by(64) {
        prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(start.wrapping_add(AHEAD_IN_STREAMS + line));
    }
}
