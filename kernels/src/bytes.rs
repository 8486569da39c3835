//! Byte storage: 64-byte aligned buffers for packed weights, and shared views into memory that somebody else owns
//! (a mapped file, say).

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// One cache line, the unit in which [`AlignedBytes`] allocates.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: an array of bytes may be all zeros.
unsafe impl bytemuck::Zeroable for Line {}

/// What large buffers begin at a multiple of.
const HUGE_PAGE: usize = 2 << 20;

/// A zero-initialised byte buffer whose address is a multiple of 64, or of 2 MB when it is as large as that.
pub struct AlignedBytes {
    lines: Vec<Line>,
    /// Unused lines before the first huge page.
    skipped: usize,
    len: usize,
}

impl AlignedBytes {
    /// A buffer of `len` zero bytes. Large buffers ask the kernel for 2 MB pages: packed weights are read from end to
    /// end once per token, and with 4 KB pages the page walks and the prefetchers that stop at every page's end cost a quarter of
    /// the bandwidth.
    pub fn zeroed(len: usize) -> Self {
        let n_lines = len.div_ceil(64);
        if len < HUGE_PAGE {
            return Self { lines: bytemuck::zeroed_vec(n_lines), skipped: 0, len };
        }
        // Fresh zero pages from the system, not yet touched: what is skipped takes no memory.
        let lines: Vec<Line> = bytemuck::zeroed_vec(n_lines + HUGE_PAGE / 64);
        let start = lines.as_ptr() as usize;
        let skipped = (start.next_multiple_of(HUGE_PAGE) - start) / 64;
        advise_huge_pages(&lines[skipped..][..n_lines]);
        Self { lines, skipped, len }
    }

    /// Makes the buffer at least `len` bytes long; the contents are unspecified afterwards (old bytes or zero).
    pub fn ensure_len(&mut self, len: usize) {
        if (self.lines.len() - self.skipped) * 64 < len {
            *self = Self::zeroed(len);
        }
        self.len = len;
    }

    /// The bytes as signed integers.
    pub fn as_i8(&self) -> &[i8] {
        bytemuck::cast_slice(self)
    }

    /// The bytes as signed integers, for writing.
    pub fn as_i8_mut(&mut self) -> &mut [i8] {
        bytemuck::cast_slice_mut(self)
    }
}

impl Clone for AlignedBytes {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let lines = &self.lines[self.skipped..];
        // SAFETY: `lines` holds at least `len` initialised bytes (64 per line, `len <= 64 * lines.len()` by construction
        // and by `ensure_len`), and u8 has no alignment or validity requirement.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let lines = &mut self.lines[self.skipped..];
        // SAFETY: as in `deref`, and `&mut self` makes the view unique.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Asks for huge pages for the whole ones of `lines`, which begin at one.
#[cfg(target_os = "linux")]
fn advise_huge_pages(lines: &[Line]) {
    let len = size_of_val(lines) / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: MADV_HUGEPAGE changes no contents and the range lies inside one allocation of ours. A kernel that refuses the
    // advice costs speed only, so the result is not looked at.
    unsafe { libc::madvise(lines.as_ptr().cast_mut().cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_lines: &[Line]) {}

/// Gives freed heap memory back to the system, so that what is resident is what is used. glibc keeps it otherwise.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim has no precondition; it touches free memory only.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// A shared, read-only range of bytes: owned, or a window into something shared such as a mapped file.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The window `range` of `owner`, or `None` when it does not lie inside.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// The bytes as signed integers.
    pub fn as_i8(&self) -> &[i8] {
        bytemuck::cast_slice(self)
    }

    /// Copies `parts` behind each other into one buffer, where together they fill huge pages that each alone would not, and makes
    /// each a window of it. Parts that were one range of bytes are two afterwards.
    pub fn gather(parts: &mut [&mut Self]) {
        let mut together = AlignedBytes::zeroed(parts.iter().map(|part| part.len().next_multiple_of(64)).sum());
        let mut start = 0;
        for part in &mut *parts {
            let range = start..start + part.len();
            together[range.clone()].copy_from_slice(part);
            start = range.end.next_multiple_of(64);
            // The old bytes are freed here, not all at the end.
            **part = Self { owner: Arc::new([]), range };
        }
        let owner = Arc::new(together);
        for part in parts {
            part.owner = owner.clone();
        }
    }
}

impl From<AlignedBytes> for Bytes {
    fn from(bytes: AlignedBytes) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.range.len())
    }
}

impl fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBytes({} bytes)", self.len)
    }
}
