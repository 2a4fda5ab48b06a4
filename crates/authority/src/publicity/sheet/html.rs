//! The page as HTML: no script, nothing loaded, black on white.

use super::qr::{MARGIN, Squares};
use super::{Part, Section, Sheet, code_lines, long_date, time_of_day};
use crate::publicity::escaped;

pub(super) fn page(sheet: &Sheet<'_>) -> String {
    let code = sheet.data.to_code();
    let title = escaped(&sheet.title());
    let at = sheet.data.time;
    let (date, time) = (long_date(at), time_of_day(at));
    let issuer = escaped(&sheet.issuer.name);
    let lead = escaped(&sheet.lead());
    let lines: Vec<_> = code_lines(&code)
        .iter()
        .map(|line| format!("<span>{line}</span>"))
        .collect();
    // A line break inside is white space in a code that is copied.
    let lines = lines.join("\n");
    let qr = qr(&code);
    let sections: String = sheet.sections().iter().map(section).collect();
    let facts: String = sheet
        .facts()
        .iter()
        .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escaped(value)))
        .collect();
    format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} \u{b7} {issuer}</title>\n\
         <style>\n{STYLE}</style>\n\
         </head>\n\
         <body>\n\
         <main>\n\
         <header>\n\
         <p class=\"kind\">Calendar publication</p>\n\
         <h1><time datetime=\"{at}\">{date} <small>{time} UTC</small></time></h1>\n\
         <p class=\"issuer\">{issuer}</p>\n\
         </header>\n\
         <div class=\"code\">\n\
         <p id=\"code\" aria-label=\"Publication code\">{lines}</p>\n\
         {qr}\n\
         </div>\n\
         <p class=\"lead\">{lead}</p>\n\
         <div class=\"sections\">\n{sections}</div>\n\
         <footer>\n\
         <dl>\n{facts}</dl>\n\
         </footer>\n\
         </main>\n\
         </body>\n\
         </html>\n"
    )
}

fn section(section: &Section) -> String {
    let mut out = format!("<section>\n<h2>{}</h2>\n", escaped(section.heading));
    for part in &section.parts {
        match part {
            Part::Text(text) => out += &format!("<p>{}</p>\n", escaped(text)),
            Part::Commands(lines) => {
                let lines: Vec<_> = lines.iter().map(|line| escaped(line)).collect();
                out += &format!(
                    "<pre tabindex=\"0\"><code>{}</code></pre>\n",
                    lines.join("\n")
                );
            }
        }
    }
    out + "</section>\n"
}

/// A drawing that stays sharp at any size.
fn qr(code: &str) -> String {
    let Some(squares) = Squares::of(code) else {
        return String::new();
    };
    let path: String = squares
        .runs()
        .iter()
        .map(|run| {
            let (x, y) = (run.x + MARGIN, run.y + MARGIN);
            format!("M{x} {y}h{0}v1h-{0}z", run.length)
        })
        .collect();
    let size = squares.size() + 2 * MARGIN;
    format!(
        "<svg role=\"img\" aria-labelledby=\"qr\" viewBox=\"0 0 {size} {size}\" \
         shape-rendering=\"crispEdges\"><title id=\"qr\">QR code of the publication code</title>\
         <path fill=\"#fff\" d=\"M0 0h{size}v{size}H0z\"/><path d=\"{path}\"/></svg>"
    )
}

const STYLE: &str = r#"
@page { size: A4; margin: 18mm 20mm }
* { box-sizing: border-box }
html { color: #111; background: #fff; -webkit-print-color-adjust: exact; print-color-adjust: exact }
body { margin: 0; font: 1rem/1.5 "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", P052, Georgia, serif }
main { max-width: 46rem; margin: 0 auto; padding: 3rem 1.5rem }
p { margin: 0 0 .6em }
.kind { display: flex; align-items: center; gap: 1em; margin: 0 0 1.2em; font: 600 .75rem/1 ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; letter-spacing: .14em; text-transform: uppercase }
.kind::after { content: ""; flex: 1; border-top: 1px solid #111 }
h1 { margin: 0; font-size: 2.6rem; line-height: 1.1; font-weight: 400; letter-spacing: -.01em; font-variant-numeric: lining-nums }
h1 small { font-size: 1.15rem; letter-spacing: 0; white-space: nowrap; color: #444; font-variant-numeric: lining-nums tabular-nums }
.issuer { margin: .35em 0 0; font-size: 1.15rem; font-style: italic; color: #444; overflow-wrap: anywhere }
.code { display: flex; align-items: center; justify-content: space-between; gap: 1.5rem; margin: 1.6rem 0 1.4rem; padding: 1.1rem 0; border: solid #111; border-width: 1px 0 }
#code { margin: 0; font: 600 clamp(1.05rem, 4.2vw, 1.65rem)/1.55 ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; letter-spacing: .02em }
#code span { display: block; white-space: nowrap }
svg { width: 11.5rem; max-width: 38%; flex: none; margin: -.6rem -.9rem -.6rem 0 }
.lead { font-size: 1.12rem; line-height: 1.45 }
h2 { margin: 1.3em 0 .3em; font: 600 .82rem/1.3 ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; letter-spacing: .02em }
pre { margin: .2em 0 .7em; padding: .55em .8em; overflow-x: auto; background: #f4f4f1; border-left: 2px solid #111; font: .76rem/1.6 ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
.sections { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 2rem }
.sections section:first-child { grid-column: 1 / -1 }
.sections section:last-child { grid-column: 1 / -1 }
footer { margin-top: 1.6rem; padding-top: .9rem; border-top: 1px solid #111 }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2em 1.2em; margin: 0; font: .72rem/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
dt { font-family: ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; color: #444 }
dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 40rem) {
  .code { flex-direction: column; align-items: flex-start }
  svg { max-width: 100%; margin-left: -.9rem }
  .sections { grid-template-columns: minmax(0, 1fr) }
}
@media print {
  html { font-size: 10.5pt }
  main { max-width: none; padding: 0 }
  pre { background: none; border: solid #999; border-width: 0 0 0 1.5pt; font-size: .7rem }
  section, .code, footer { break-inside: avoid }
}
"#;
