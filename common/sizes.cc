#include "common/sizes.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <optional>

#include "common/log.h"

namespace rbt {
namespace {

constexpr std::size_t kDecimalsMax = 18;  // 10^18 fits 64 bits
constexpr std::size_t kDurationDecimalsMax = 6;

constexpr std::array<std::string_view, 7> kSizeUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};

struct DurationUnit {
  std::string_view name;
  std::uint64_t ns;
};
// parse_duration() accepts all of them, format_duration() takes the largest that fits, without the alias "m"
constexpr std::array<DurationUnit, 7> kDurationUnits{{{"ns", 1},
                                                      {"us", 1'000},
                                                      {"ms", 1'000'000},
                                                      {"s", 1'000'000'000},
                                                      {"m", 60'000'000'000},
                                                      {"min", 60'000'000'000},
                                                      {"h", 3'600'000'000'000}}};

struct Number {
  std::uint64_t whole = 0;
  std::uint64_t fraction = 0;  ///< in units of 10^-decimals, without trailing zeros
  std::size_t decimals = 0;
  std::string_view unit;
};

constexpr bool is_decimal(char c) noexcept {
  return c >= '0' && c <= '9';
}
constexpr char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

/// "12.5 KiB" into its parts. Nothing if it does not begin with a digit, or a part does not fit.
std::optional<Number> split_number(std::string_view text) noexcept {
  Number number;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number.whole);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(stop - text.data()));
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    std::size_t count = 0;
    while (count < text.size() && is_decimal(text[count]))
      ++count;
    auto decimals = text.substr(0, count);
    if (decimals.empty()) return std::nullopt;
    decimals = decimals.substr(0, decimals.find_last_not_of('0') + 1);
    if (decimals.size() > kDecimalsMax) return std::nullopt;
    std::from_chars(decimals.data(), decimals.data() + decimals.size(), number.fraction);
    number.decimals = decimals.size();
    text.remove_prefix(count);
  }
  if (text.starts_with(' ')) text.remove_prefix(1);
  number.unit = text;
  return number;
}

/// log2 of the unit: "", "b", "k", "KiB" … Nothing for what is none, "GB" included.
std::optional<unsigned> size_shift(std::string_view unit) noexcept {
  if (unit.empty()) return 0;
  for (std::size_t i = 0; i < kSizeUnits.size(); ++i) {
    if (lower(unit.front()) != lower(kSizeUnits[i].front())) continue;
    const auto rest = unit.substr(1);
    const bool is_long = i > 0 && rest.size() == 2 && lower(rest[0]) == 'i' && lower(rest[1]) == 'b';
    if (rest.empty() || is_long) return static_cast<unsigned>(i) * 10;
  }
  return std::nullopt;
}

/// fraction * 2^shift / 10^decimals if it is whole. With 10^d = 5^d * 2^d: 5^d must divide the fraction, and
/// the rest are shifts; the quotient is below 2^d, so nothing overflows.
std::optional<std::uint64_t> whole_fraction(const Number& number, unsigned shift) noexcept {
  std::uint64_t quotient = number.fraction;
  for (std::size_t i = 0; i < number.decimals; ++i) {
    if (quotient % 5 != 0) return std::nullopt;
    quotient /= 5;
  }
  if (shift >= number.decimals) return quotient << (shift - number.decimals);
  const auto down = number.decimals - shift;
  if ((quotient & ((std::uint64_t{1} << down) - 1)) != 0) return std::nullopt;
  return quotient >> down;
}

tl::unexpected<Error> refused(std::string_view text, std::string_view why) {
  return failure(ErrorKind::invalid_argument, fmt::format("'{}' {}", printable(text, 64), why));
}

/// "1.5 TiB" from a whole part and hundredths.
std::string with_unit(std::uint64_t whole, std::uint64_t hundredths, std::string_view unit) {
  if (hundredths == 0) return fmt::format("{} {}", whole, unit);
  if (hundredths % 10 == 0) return fmt::format("{}.{} {}", whole, hundredths / 10, unit);
  return fmt::format("{}.{:02} {}", whole, hundredths, unit);
}

}  // namespace

Result<Bytes> parse_size(std::string_view text) {
  const auto number = split_number(text);
  if (!number) return refused(text, "is not a size: a number and perhaps k, M, G, T, P or E, like 512, 4k, 1.5GiB");
  const auto shift = size_shift(number->unit);
  if (!shift)
    return refused(text,
                   "has a unit that is not one of k, M, G, T, P, E or KiB, MiB, GiB, TiB, PiB, EiB (powers of 1024)");
  const auto fraction = whole_fraction(*number, *shift);
  if (!fraction) return refused(text, "is not a whole number of bytes");
  if (number->whole > ~std::uint64_t{0} >> *shift) return refused(text, "is too large: less than 16 EiB is allowed");
  return Bytes((number->whole << *shift) + *fraction);  // fraction < 1 << shift: no carry
}

Result<Duration> parse_duration(std::string_view text) {
  constexpr std::string_view kForm = "is not a duration: a number and one of ns, us, ms, s, min, h, like 5ms or 1.5s";
  const auto number = split_number(text);
  if (!number || number->decimals > kDurationDecimalsMax) return refused(text, kForm);
  if (number->unit.empty() && number->whole == 0 && number->fraction == 0) return Duration::zero();
  for (const auto& unit : kDurationUnits) {
    if (unit.name != number->unit) continue;
    constexpr auto kMax = static_cast<std::uint64_t>(Duration::max().count());
    if (number->whole > kMax / unit.ns) return refused(text, "is too long: less than 292 years is allowed");
    std::uint64_t scale = 1;
    for (std::size_t i = 0; i < number->decimals; ++i)
      scale *= 10;
    const std::uint64_t fraction = number->fraction * unit.ns / scale;  // < 10^6 * 3.6 * 10^12: fits
    const std::uint64_t whole = number->whole * unit.ns;
    if (fraction > kMax - whole) return refused(text, "is too long: less than 292 years is allowed");
    return Duration(static_cast<Duration::rep>(whole + fraction));
  }
  return refused(text, kForm);
}

std::string format_bytes(Bytes size) {
  unsigned unit = 0;
  while (unit + 1 < kSizeUnits.size() && size.value() >> (10 * (unit + 1)) != 0)
    ++unit;
  const unsigned shift = 10 * unit;
  const std::uint64_t below = size.value() & ((std::uint64_t{1} << shift) - 1);
  // 10 bits of the fraction are enough for two decimals, and times 100 they fit
  const std::uint64_t hundredths = unit == 0 ? 0 : (below >> (shift - 10)) * 100 >> 10;
  return with_unit(size.value() >> shift, hundredths, kSizeUnits[unit]);
}

std::string format_duration(Duration duration) {
  const bool negative = duration < Duration::zero();
  const auto count = static_cast<std::uint64_t>(duration.count());
  const std::uint64_t ns = negative ? std::uint64_t{0} - count : count;
  const DurationUnit* best = &kDurationUnits.front();
  for (const auto& unit : kDurationUnits)
    if (unit.name != "m" && ns >= unit.ns) best = &unit;
  const std::uint64_t hundredths = best->ns == 1 ? 0 : ns % best->ns / (best->ns / 100);
  return (negative ? "-" : "") + with_unit(ns / best->ns, hundredths, best->name);
}

}  // namespace rbt
