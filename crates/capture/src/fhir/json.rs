//! JSON that means one thing: no key twice, and a path for every complaint.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{FhirError, Problem};

/// Parses JSON, refusing an object that has a key twice: one reader would
/// take the first, another the last.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, FhirError> {
    let Strict(value) = serde_json::from_slice(bytes).map_err(|error| syntax(&error))?;
    Ok(value)
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

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("a key is given twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

/// A JSON value together with its FHIRPath in the resource.
#[derive(Clone)]
pub(super) struct Node<'a> {
    value: &'a Value,
    pub(super) path: String,
}

impl<'a> Node<'a> {
    pub(super) fn root(value: &'a Value, name: &str) -> Self {
        Self {
            value,
            path: name.to_owned(),
        }
    }

    /// The element, if it is there; `null` counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<Self> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        Some(Self {
            value,
            path: format!("{}.{name}", self.path),
        })
    }

    /// An element that must be there.
    pub(super) fn required(&self, name: &str) -> Result<Self, FhirError> {
        self.get(name).ok_or_else(|| {
            FhirError::new(
                Problem::Required,
                &format!("{}.{name}", self.path),
                "this element is required".to_owned(),
            )
        })
    }

    /// The items of a repeating element; none if it is absent.
    pub(super) fn list(&self, name: &str) -> Result<Vec<Self>, FhirError> {
        let Some(node) = self.get(name) else {
            return Ok(Vec::new());
        };
        let items = node
            .value
            .as_array()
            .ok_or_else(|| node.invalid("an array is expected"))?;
        let item = |(at, value)| Node {
            value,
            path: format!("{}[{at}]", node.path),
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    pub(super) fn object(self) -> Result<Self, FhirError> {
        if self.value.is_object() {
            Ok(self)
        } else {
            Err(self.invalid("an object is expected"))
        }
    }

    /// A string that is not empty, if the element is there.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, FhirError> {
        self.get(name).map(|node| node.as_text()).transpose()
    }

    pub(super) fn as_text(&self) -> Result<&'a str, FhirError> {
        self.value
            .as_str()
            .filter(|text| !text.is_empty())
            .ok_or_else(|| self.invalid("a string that is not empty is expected"))
    }

    pub(super) fn boolean(&self) -> Result<bool, FhirError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.invalid("true or false is expected"))
    }

    pub(super) fn invalid(&self, why: &str) -> FhirError {
        FhirError::new(Problem::Invalid, &self.path, why.to_owned())
    }
}
