//! What was looked up lately, in bounded memory.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Remembers at least the last `N` different entries that were used, and at most
/// twice as many: when one generation is full, the one before it is forgotten.
pub(crate) struct Recent<K, V, const N: usize> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V, const N: usize> Default for Recent<K, V, N> {
    fn default() -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq, V: Clone, const N: usize> Recent<K, V, N> {
    /// The value of `key`, if it is remembered.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    /// Remembers a value.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= N {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Forgets the value of `key`.
    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let mut recent = Recent::<String, u32, 3>::default();
        recent.insert("kept".into(), 0);
        for number in 1..50 {
            recent.insert(number.to_string(), number);
            assert_eq!(recent.get("kept"), Some(0), "after {number}");
            assert!(recent.young.len() <= 3 && recent.old.len() <= 3);
        }
        assert_eq!(recent.get("49"), Some(49));
        assert_eq!(recent.get("1"), None);
    }

    #[test]
    fn what_is_removed_is_gone_however_old() {
        let mut recent = Recent::<String, u32, 3>::default();
        for number in 0..5 {
            recent.insert(number.to_string(), number);
        }
        assert!(recent.old.contains_key("0") && recent.young.contains_key("4"));
        for key in ["0", "4"] {
            recent.remove(key);
            assert_eq!(recent.get(key), None);
        }
        assert_eq!(recent.get("3"), Some(3));
    }
}
