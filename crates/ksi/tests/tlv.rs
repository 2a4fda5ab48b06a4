//! Published TLV files are accepted or refused as their names say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pitser_ksi::{
    DecodeError,
    tlv::{Element, Writer},
};
use std::{fs, path::Path};

/// Calls `check` with each file whose name starts with `prefix`; there are `count`.
fn for_each(prefix: &str, count: usize, check: impl Fn(&str, &[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/ksi/tlv");
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let named = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(prefix) && name.ends_with(".tlv")
    };
    let paths: Vec<_> = paths.filter(named).collect();
    assert_eq!(paths.len(), count, "{prefix}");
    for path in paths {
        check(&path.display().to_string(), &fs::read(&path).unwrap());
    }
}

fn integer(bytes: &[u8]) -> Result<u64, DecodeError> {
    Element::single(bytes)?.integer()
}

fn string(bytes: &[u8]) -> Result<String, DecodeError> {
    Element::single(bytes)?.string().map(str::to_owned)
}

#[test]
fn good_integers() {
    for_each("ok_int", 9, |name, bytes| {
        let value = integer(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut writer = Writer::new();
        writer.integer(Element::single(bytes).unwrap().tag, value);
        assert_eq!(writer.finish().unwrap(), bytes, "{name}");
    });
}

#[test]
fn bad_integers() {
    for_each("nok_int", 4, |name, bytes| {
        assert!(integer(bytes).is_err(), "{name}")
    });
}

#[test]
fn good_strings() {
    for_each("ok_str", 7, |name, bytes| {
        let text = string(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut writer = Writer::new();
        writer.string(Element::single(bytes).unwrap().tag, &text);
        assert_eq!(writer.finish().unwrap(), bytes, "{name}");
    });
}

#[test]
fn bad_strings() {
    for_each("nok_str", 1, |name, bytes| {
        assert!(string(bytes).is_err(), "{name}")
    });
}

#[test]
fn octets() {
    for_each("ok_oct", 2, |name, bytes| {
        let element = Element::single(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(element.raw, bytes, "{name}");
    });
}

#[test]
fn nested_elements_are_written_as_they_were_read() {
    for_each("ok_nested", 10, |name, bytes| {
        let outer = Element::single(bytes).unwrap();
        let mut writer = Writer::new();
        for child in outer.children() {
            writer.raw(child.unwrap_or_else(|e| panic!("{name}: {e}")).raw);
        }
        assert_eq!(writer.finish().unwrap(), outer.value, "{name}");
    });
}
