//! Byte storage: 64-byte aligned buffers for packed weights, and shared views into memory that somebody else owns
//! (a mapped file, say).

use std::alloc::Layout;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;

/// One cache line, the unit in which [`AlignedBytes`] allocates.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: an array of bytes may be all zeros, and as many bytes as its alignment leave no padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// What large buffers begin at a multiple of.
const HUGE_PAGE: usize = 2 << 20;

/// A zero-initialised byte buffer whose address is a multiple of 64, or of 2 MB when it is as large as that.
pub struct AlignedBytes {
    storage: Storage,
    len: usize,
}

enum Storage {
    Heap(Vec<Line>),
    /// Pages of its own: `capacity` bytes from byte `start` on.
    Pages {
        map: MmapMut,
        start: usize,
        capacity: usize,
    },
}

impl AlignedBytes {
    /// A buffer of `len` zero bytes. Large buffers ask the system for 2 MB pages: packed weights are read once per
    /// token in long streams, and with 4 KB pages the page walks and the prefetchers that stop at every page's end cost a quarter of
    /// the bandwidth.
    pub fn zeroed(len: usize) -> Self {
        Self::on_pages_from(HUGE_PAGE, len)
    }

    /// The same, where `large` bytes are large, at least half a page.
    fn on_pages_from(large: usize, len: usize) -> Self {
        let storage = if len < large {
            Storage::Heap(bytemuck::zeroed_vec(len.div_ceil(64)))
        } else {
            // The last page is a huge one too if at least half of it is used; the rest of it takes memory then.
            let huge = (len + HUGE_PAGE / 2) / HUGE_PAGE * HUGE_PAGE;
            let capacity = len.max(huge);
            // What lies before the first huge page is never touched and takes no memory.
            let Ok(map) = MmapMut::map_anon(capacity + HUGE_PAGE) else {
                std::alloc::handle_alloc_error(Layout::from_size_align(len, HUGE_PAGE).unwrap_or(Layout::new::<Line>()))
            };
            let start = map.as_ptr().align_offset(HUGE_PAGE);
            // A system that refuses the advice costs speed only.
            #[cfg(target_os = "linux")]
            let _ = map.advise_range(memmap2::Advice::HugePage, start, huge);
            Storage::Pages { map, start, capacity }
        };
        Self { storage, len }
    }

    /// Makes the buffer at least `len` bytes long; the contents are unspecified afterwards (old bytes or zero).
    pub fn ensure_len(&mut self, len: usize) {
        if self.capacity() < len {
            *self = Self::zeroed(len);
        }
        self.len = len;
    }

    /// Bytes held.
    pub fn capacity(&self) -> usize {
        match &self.storage {
            Storage::Heap(lines) => size_of_val(&lines[..]),
            Storage::Pages { capacity, .. } => *capacity,
        }
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
    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Heap(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Storage::Pages { map, start, .. } => &map[*start..][..self.len],
        }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.storage {
            Storage::Heap(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Storage::Pages { map, start, .. } => &mut map[*start..][..self.len],
        }
    }
}

/// Numbers of a pass, reused from pass to pass. They begin with a cache line: where a `Vec` begins in the middle of one, every
/// access of 64 bytes is two (storing a batch's products then takes a tenth of its time more).
#[derive(Clone)]
pub struct Aligned<T> {
    bytes: AlignedBytes,
    of: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// Makes it `len` numbers; they are unspecified afterwards (old ones or zero).
    pub fn resize(&mut self, len: usize) {
        self.bytes.ensure_len(len * size_of::<T>());
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

impl<T: Pod> FromIterator<T> for Aligned<T> {
    fn from_iter<I: IntoIterator<Item = T>>(numbers: I) -> Self {
        let numbers: Vec<T> = numbers.into_iter().collect();
        let mut aligned = Self::default();
        aligned.resize(numbers.len());
        aligned.copy_from_slice(&numbers);
        aligned
    }
}

impl<T: Pod + PartialEq> PartialEq for Aligned<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { bytes: AlignedBytes::zeroed(0), of: PhantomData }
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes)
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.bytes)
    }
}

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
    /// each a window of it. Parts that were one range of bytes are two afterwards; parts that lie behind each other in one buffer stay.
    pub fn gather(parts: &mut [&mut Self]) {
        let in_order = |a: &Self, b: &Self| Arc::ptr_eq(&a.owner, &b.owner) && a.range.end <= b.range.start;
        if parts.windows(2).all(|pair| in_order(pair[0], pair[1])) {
            return;
        }
        let len = parts.iter().map(|part| part.len().next_multiple_of(64)).sum();
        let mut together = AlignedBytes::on_pages_from(HUGE_PAGE / 2, len);
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
    #[inline]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_parts_have_memory_of_their_own() {
        let mut bytes = AlignedBytes::zeroed(70);
        bytes.copy_from_slice(&std::array::from_fn::<u8, 70, _>(|i| i as u8));
        let first = Bytes::from(bytes);
        let mut copies = [first.clone(), first.clone(), first.clone()];
        Bytes::gather(&mut copies.each_mut());
        for (i, copy) in copies.iter().enumerate() {
            assert_eq!(**copy, *first);
            assert_eq!(
                copy.as_ptr().addr(),
                copies[0].as_ptr().addr() + 128 * i,
                "copy {i} begins with a line of its own"
            );
        }
        let before = copies.each_ref().map(|copy| copy.as_ptr());
        Bytes::gather(&mut copies.each_mut());
        assert_eq!(copies.each_ref().map(|copy| copy.as_ptr()), before, "what lies in order stays");
    }

    #[test]
    fn parts_that_together_fill_half_a_huge_page_begin_one() {
        let part = || Bytes::from(AlignedBytes::zeroed(HUGE_PAGE / 6));
        let mut parts = [part(), part(), part(), part()];
        Bytes::gather(&mut parts.each_mut());
        assert!(parts[0].as_ptr().addr().is_multiple_of(HUGE_PAGE));
    }
}
