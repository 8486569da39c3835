//! Where the bits lie: pack and unpack, no arithmetic. LAYOUTS.md draws each one.

pub mod i2s;
