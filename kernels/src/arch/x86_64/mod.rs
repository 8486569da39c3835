//! Kernels for x86-64.

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
