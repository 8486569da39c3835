//! Byte storage: 64-byte aligned buffers for packed weights, and shared views into memory that somebody else owns
//! (a mapped file, say).

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// One cache line, the unit in which [`AlignedBytes`] allocates.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A zero-initialised byte buffer whose address is a multiple of 64.
#[derive(Clone)]
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBytes {
    /// A buffer of `len` zero bytes. Large buffers ask the kernel for 2 MB pages: packed weights are read from end to
    /// end once per token, and with 4 KB pages the page walks cost several percent of the bandwidth.
    pub fn zeroed(len: usize) -> Self {
        let n_lines = len.div_ceil(64);
        let mut lines: Vec<Line> = Vec::with_capacity(n_lines);
        advise_huge_pages(lines.as_ptr().cast(), n_lines * 64);
        lines.resize(n_lines, Line([0; 64]));
        Self { lines, len }
    }

    /// Makes the buffer at least `len` bytes long; the contents are unspecified afterwards (old bytes or zero).
    pub fn ensure_len(&mut self, len: usize) {
        if self.lines.len() * 64 < len {
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

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `lines` holds at least `len` initialised bytes (64 per line, `len <= 64 * lines.len()` by construction
        // and by `ensure_len`), and u8 has no alignment or validity requirement.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the view unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: *const u8, len: usize) {
    const HUGE_PAGE: usize = 2 << 20;
    let first = (start as usize).next_multiple_of(HUGE_PAGE);
    let end = (start as usize + len) / HUGE_PAGE * HUGE_PAGE;
    if first < end {
        // SAFETY: MADV_HUGEPAGE changes no contents and the range lies inside one allocation of ours. A kernel that
        // refuses the advice costs speed only, so the result is not looked at.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: *const u8, _len: usize) {}

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
