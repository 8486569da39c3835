//! Blocks of a KV cache, and what is asked for while they are read.

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::prefetch;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Blocks of a head's keys or values as bytes, and those that will be read after all of them: while a line of one is read, the line in its
/// place in the other is asked for.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    /// What is read.
    pub all: &'a [&'a [u8]],
    /// What will be, as far as it is known.
    pub next: &'a [&'a [u8]],
}

impl Blocks<'_> {
    /// What to ask for while a line of block `i` is read, `step` blocks at a time.
    #[inline(always)]
    pub(super) fn ahead(&self, i: usize, step: usize) -> Ahead {
        let start = self.all[i].as_ptr().addr();
        let to =
            |block: Option<&&[u8]>| block.map_or(0, |block| block.as_ptr().addr().wrapping_sub(start).cast_signed());
        Ahead { near: to(self.all.get(i + step)), next: to(self.next.get(i)) }
    }
}

/// Bytes from a line to the one in its place in the block that is read soon, and in the block that is read after all of these; 0, a line that
/// is read anyway, where there is none.
#[derive(Clone, Copy, Default)]
pub(super) struct Ahead {
    near: isize,
    pub(super) next: isize,
}

/// Asks for cache lines ahead of the number at `at`: blocks are too short for prefetchers, and behind the last of a head's come others that
/// nobody wants. `NEAR` says that the block read soon is asked for, too.
#[inline(always)]
pub(super) fn ask<const NEAR: bool, N>(at: *const N, ahead: Ahead) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1};
        if NEAR {
            prefetch::<_MM_HINT_T0>(at.cast::<u8>().wrapping_offset(ahead.near));
        }
        prefetch::<_MM_HINT_T1>(at.cast::<u8>().wrapping_offset(ahead.next));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, ahead);
}

/// Asks for the cache lines of `bytes` that are `step` bytes apart, from the first on: a row will be written to them.
pub fn ask_for_lines(bytes: &[u8], step: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(step) {
        prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, step);
}
