//! JSON that means one thing: no key twice, and a path for every complaint.
//!
//! All values of a text stand in one list of 12 bytes each, a key before its value, and
//! what their strings say in one string. So an event of many tiny objects takes a small
//! multiple of its bytes, where a tree of maps takes a hundred times as many.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{FhirError, Problem};

/// The values of a JSON text, in the order in which they begin.
pub(super) struct Json {
    values: Vec<Value>,
    /// What the strings say, one after the other.
    texts: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Null,
    Bool(bool),
    Number,
    /// A string or a key: where it stands in `texts`.
    Text {
        start: u32,
        end: u32,
    },
    /// Its items follow, up to `end`.
    List {
        end: u32,
    },
    /// Its members follow, up to `end`, each a key and a value.
    Object {
        end: u32,
    },
}

/// Parses JSON, refusing an object that has a key twice: one reader would
/// take the first, another the last.
pub(super) fn parse(bytes: &[u8]) -> Result<Json, FhirError> {
    // Each value but the first comes after one of these.
    let more = bytes
        .iter()
        .filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{'));
    let mut json = Json {
        values: Vec::with_capacity(1 + more.count()),
        texts: String::with_capacity(bytes.len()),
    };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    json.deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|error| syntax(&error))?;
    Ok(json)
}

/// Where parsing stopped. Not the parser's own words, which quote the text.
pub(super) fn syntax(error: &serde_json::Error) -> FhirError {
    let why = match error.classify() {
        serde_json::error::Category::Data => "JSON of another shape, or a key given twice",
        _ => "not JSON",
    };
    FhirError::new(
        Problem::Syntax,
        "",
        format!("{why}: line {}, column {}", error.line(), error.column()),
    )
}

impl Json {
    /// Where the next value will stand.
    fn next<E: de::Error>(&self) -> Result<u32, E> {
        place(self.values.len())
    }

    /// Whether the object at `at` has a key twice.
    fn has_a_key_twice(&self, at: u32) -> bool {
        let mut keys: Vec<u32> = self.members(at).map(|(key, _)| key).collect();
        keys.sort_unstable_by_key(|&key| self.text(key));
        keys.windows(2)
            .any(|pair| self.text(pair[0]) == self.text(pair[1]))
    }

    fn value(&self, at: u32) -> Value {
        self.values.get(at as usize).copied().unwrap_or(Value::Null)
    }

    fn text(&self, at: u32) -> Option<&str> {
        match self.value(at) {
            Value::Text { start, end } => self.texts.get(start as usize..end as usize),
            _ => None,
        }
    }

    /// Where the values of the list or object at `at` end, and it with them.
    fn end(&self, at: u32) -> u32 {
        match self.value(at) {
            Value::List { end } | Value::Object { end } => end,
            _ => at + 1,
        }
    }

    /// The items of the list at `at`.
    fn items(&self, at: u32) -> impl Iterator<Item = u32> + Clone {
        let end = self.end(at);
        let first = Some(at + 1);
        std::iter::successors(first, move |&item| Some(self.end(item)))
            .take_while(move |&item| item < end)
    }

    /// The members of the object at `at`: key and value.
    fn members(&self, at: u32) -> impl Iterator<Item = (u32, u32)> {
        let end = match self.value(at) {
            Value::Object { end } => end,
            _ => at,
        };
        let first = Some(at + 1);
        std::iter::successors(first, move |&key| Some(self.end(key + 1)))
            .take_while(move |&key| key < end)
            .map(|key| (key, key + 1))
    }
}

fn place<E: de::Error>(at: usize) -> Result<u32, E> {
    at.try_into().map_err(|_| E::custom("too long"))
}

/// Adds one value, and what is in it.
impl<'de> DeserializeSeed<'de> for &mut Json {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Json {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.values.push(Value::Null);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.values.push(Value::Bool(value));
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.values.push(Value::Number);
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.values.push(Value::Number);
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.values.push(Value::Number);
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        let start = place(self.texts.len())?;
        self.texts.push_str(text);
        let end = place(self.texts.len())?;
        self.values.push(Value::Text { start, end });
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let at = self.values.len();
        self.values.push(Value::Null);
        while items.next_element_seed(&mut *self)?.is_some() {}
        self.values[at] = Value::List { end: self.next()? };
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let at = self.values.len();
        self.values.push(Value::Null);
        while members.next_key_seed(&mut *self)?.is_some() {
            members.next_value_seed(&mut *self)?;
        }
        self.values[at] = Value::Object { end: self.next()? };
        match self.has_a_key_twice(place(at)?) {
            true => Err(de::Error::custom("a key is given twice")),
            false => Ok(()),
        }
    }
}

/// A JSON value of a resource.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    json: &'a Json,
    at: u32,
}

impl<'a> Node<'a> {
    pub(super) fn root(json: &'a Json) -> Self {
        Self { json, at: 0 }
    }

    /// The element, if it is there; `null` counts as absent.
    pub(super) fn get(self, name: &str) -> Option<Self> {
        let mut members = self.json.members(self.at);
        let (_, at) = members.find(|&(key, _)| self.json.text(key) == Some(name))?;
        let value = Self { at, ..self };
        (value.value() != Value::Null).then_some(value)
    }

    /// An element that must be there.
    pub(super) fn required(self, name: &str) -> Result<Self, FhirError> {
        self.get(name).ok_or_else(|| {
            FhirError::new(
                Problem::Required,
                &format!("{}.{name}", self.path()),
                "this element is required".to_owned(),
            )
        })
    }

    /// The items of a repeating element; none if it is absent.
    pub(super) fn list(
        self,
        name: &str,
    ) -> Result<impl Iterator<Item = Self> + Clone + use<'a>, FhirError> {
        let list = self.get(name);
        let items = match list.map(|list| (list, list.value())) {
            None => None,
            Some((list, Value::List { .. })) => Some(self.json.items(list.at)),
            Some((list, _)) => return Err(list.invalid("an array is expected")),
        };
        let items = items.into_iter().flatten();
        Ok(items.map(move |at| Self { at, ..self }))
    }

    pub(super) fn object(self) -> Result<Self, FhirError> {
        match self.value() {
            Value::Object { .. } => Ok(self),
            _ => Err(self.invalid("an object is expected")),
        }
    }

    /// A string that is not empty, if the element is there.
    pub(super) fn text(self, name: &str) -> Result<Option<&'a str>, FhirError> {
        self.get(name).map(Self::as_text).transpose()
    }

    pub(super) fn as_text(self) -> Result<&'a str, FhirError> {
        self.json
            .text(self.at)
            .filter(|text| !text.is_empty())
            .ok_or_else(|| self.invalid("a string that is not empty is expected"))
    }

    pub(super) fn boolean(self) -> Result<bool, FhirError> {
        match self.value() {
            Value::Bool(value) => Ok(value),
            _ => Err(self.invalid("true or false is expected")),
        }
    }

    pub(super) fn invalid(self, why: &str) -> FhirError {
        FhirError::new(Problem::Invalid, &self.path(), why.to_owned())
    }

    fn value(self) -> Value {
        self.json.value(self.at)
    }

    /// Its FHIRPath, found on the way to it from the resource.
    fn path(self) -> String {
        let mut path = "AuditEvent".to_owned();
        let mut around = 0;
        while around != self.at {
            let is_in = |value: u32| (value..self.json.end(value)).contains(&self.at);
            let step = match self.json.value(around) {
                Value::List { .. } => {
                    let mut items = self.json.items(around).enumerate();
                    let found = items.find(|&(_, item)| is_in(item));
                    found.map(|(at, item)| (format!("[{at}]"), item))
                }
                _ => {
                    let mut members = self.json.members(around);
                    let found = members.find(|&(_, value)| is_in(value));
                    found.map(|(key, value)| {
                        let name = self.json.text(key).unwrap_or_default();
                        (format!(".{name}"), value)
                    })
                }
            };
            // A key has no path, and is no node.
            let Some((step, value)) = step else { break };
            path.push_str(&step);
            around = value;
        }
        path
    }
}
