#include "tools/rbt-target/convert.h"

#include <fmt/format.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/nvme/uuid.h"
#include "common/random.h"
#include "common/sizes.h"
#include "target/store/identity.h"
#include "tools/program/interrupt.h"
#include "tools/program/progress.h"

namespace rbt::tools {

namespace {

class Shown final : public target::ConvertObserver {
 public:
  explicit Shown(const Clock& clock) : clock_(clock) {}
  bool on_converted(Bytes done, Bytes size) override {
    if (!progress_) progress_.emplace(clock_, size.value());
    progress_->update(done.value(), "converting");
    return !interrupt_.raised();
  }

 private:
  const Clock& clock_;
  const Interrupt interrupt_;
  std::optional<Progress> progress_;
};

}  // namespace

Result<void> convert(const target::ConvertOptions& options) {
  const SystemClock clock;
  auto random = Random::from_entropy();
  const auto logger = make_stderr_logger(LogLevel::warning);
  Result<target::ConvertResult> result;
  {
    Shown shown(clock);
    result = convert_image(options, {.clock = clock, .random = random, .logger = *logger}, shown);
  }
  if (!result) return failure(std::move(result.error()));
  fmt::print("{}: {} of {}, {} of it data", options.to,
             options.form == target::ImageForm::shadow ? "a shadow image" : "a plain image", format_bytes(result->size),
             format_bytes(result->data));
  if (options.form == target::ImageForm::shadow)
    fmt::print(", in blocks of {}, identity {}", result->block_shift.block_size(),
               target::uuid_of(result->identity).to_string());
  fmt::print("\n");
  return {};
}

}  // namespace rbt::tools
