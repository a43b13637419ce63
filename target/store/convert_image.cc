#include "target/store/convert_image.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "target/store/file_medium.h"
#include "target/store/image_output.h"
#include "target/store/image_table.h"
#include "target/store/map_look.h"
#include "target/store/mapping.h"
#include "target/store/zeroing.h"

namespace rbt::target {

namespace {

constexpr std::uint64_t kAtOnce = kMiB;
constexpr std::uint64_t kPage = 4096;  // zeroes of this length are holes again

/// A file, block device or devdax device, for reading, locked.
class Input {
 public:
  static Result<Input> open(const std::string& path, std::optional<BlockShift> block_shift,
                            const StoreEnvironment& environment) {
    auto found = look_at(path);
    if (!found) return failure(std::move(found.error()));
    const bool devdax = found->kind == MapKind::devdax;
    const FileOptions options{.name = {"image", path},
                              .block_shift = block_shift,
                              .read_only = true,
                              .direct = DirectIo::never,
                              .identity = Identity{}};
    auto medium = devdax ? FileMedium::open_devdax(options, environment) : FileMedium::open(options, environment);
    if (!medium) return failure(std::move(medium.error()));
    Input input(std::move(*medium));
    if (!devdax) return input;
    auto mapping = Mapping::create(input.medium_.fd(), input.size(), {.writable = false});
    if (!mapping) return failure(std::move(mapping.error()).within(path));
    input.mapping_.emplace(std::move(*mapping));
    return input;
  }

  [[nodiscard]] std::uint64_t size() const noexcept {
    return medium_.geometry().blocks.value() << medium_.geometry().block_shift.value();
  }
  [[nodiscard]] BlockShift block_shift() const noexcept { return medium_.geometry().block_shift; }
  [[nodiscard]] unsigned mode() const noexcept {
    struct stat about {};
    const bool file = ::fstat(medium_.fd(), &about) == 0 && S_ISREG(about.st_mode);
    return file ? about.st_mode & 0777 : 0600;
  }
  [[nodiscard]] Result<void> read(std::uint64_t offset, std::span<std::byte> bytes) const {
    if (mapping_) {
      std::memcpy(bytes.data(), mapping_->span().data + offset, bytes.size());
      return {};
    }
    while (!bytes.empty()) {
      const auto moved = ::pread(medium_.fd(), bytes.data(), bytes.size(), static_cast<::off_t>(offset));
      if (moved < 0 && errno == EINTR) continue;
      if (moved <= 0)
        return errno_failure(moved < 0 ? errno : EIO,
                             fmt::format("reading {} at byte {}", medium_.name().path, offset));
      offset += static_cast<std::uint64_t>(moved);
      bytes = bytes.subspan(static_cast<std::size_t>(moved));
    }
    return {};
  }
  /// Where something else than a hole begins; at most `end`.
  [[nodiscard]] std::uint64_t next_data(std::uint64_t offset, std::uint64_t end) const noexcept {
    return mapping_ ? offset : next_data_in_file(medium_.fd(), offset, end);
  }

 private:
  explicit Input(FileMedium medium) : medium_(std::move(medium)) {}
  FileMedium medium_;
  std::optional<Mapping> mapping_;
};

/// The blocks in an input, whatever its form.
class Disk {
 public:
  Disk(const Input& input, std::unique_ptr<ImageTable> table) : input_(input), table_(std::move(table)) {}
  [[nodiscard]] std::uint64_t size() const noexcept {
    return table_ ? table_->layout().blocks.value() << block_shift().value() : input_.size();
  }
  [[nodiscard]] BlockShift block_shift() const noexcept {
    return table_ ? table_->layout().block_shift : input_.block_shift();
  }
  /// What lies at byte `offset` of the disk, in one piece of at most `most`.
  struct Piece {
    std::uint64_t length;
    std::optional<std::uint64_t> at;  // of the input; nothing: zeroes
  };
  [[nodiscard]] Piece piece(std::uint64_t offset, std::uint64_t most) const {
    const std::uint64_t end = std::min(size(), offset + most);
    Piece found = table_ ? run_of_places(offset, end) : Piece{end - offset, offset};
    if (!found.at) return found;
    const std::uint64_t data = input_.next_data(*found.at, *found.at + found.length);
    return data == *found.at ? found : Piece{data - *found.at, std::nullopt};
  }

 private:
  [[nodiscard]] Piece run_of_places(std::uint64_t offset, std::uint64_t end) const {
    BlockTable& table = table_->blocks();
    const unsigned shift = block_shift().value();
    const auto first = table.look(Lba(offset >> shift));
    std::uint64_t count = 1;
    for (; (offset >> shift) + count < end >> shift; ++count) {
      const auto next = table.look(Lba((offset >> shift) + count));
      if (next.zeroes != first.zeroes || (!first.zeroes && next.place != first.place + count)) break;
    }
    if (first.zeroes) return {count << shift, std::nullopt};
    return {count << shift, table_->layout().place_offset(first.place)};
  }

  const Input& input_;
  std::unique_ptr<ImageTable> table_;
};

Result<Disk> understand(const Input& input, ImageForm form, const std::string& path) {
  ShadowHeader header{};
  const std::uint64_t length = std::min<std::uint64_t>(input.size(), header.size());
  if (auto done = input.read(0, std::span(header).first(length)); !done) return failure(std::move(done.error()));
  if (form == ImageForm::raw) {
    if (begins_like_shadow_image(header))
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{} begins like a shadow image already: --to raw makes a plain one of it", path));
    return Disk(input, nullptr);
  }
  auto layout = parse_header(std::span(header).first(length));
  if (!layout) return failure(std::move(layout.error()).within(path));
  if (input.size() < layout->size())
    return failure(ErrorKind::mismatch, fmt::format("{}: its shadow image has {} bytes, and only {} are there: it was "
                                                    "cut short",
                                                    path, layout->size(), input.size()));
  auto table = std::make_unique<ImageTable>(*layout);
  auto loaded = table->load([&](std::uint64_t at, std::span<std::byte> bytes) { return input.read(at, bytes); });
  if (!loaded) return failure(std::move(loaded.error()).within(path));
  return Disk(input, std::move(table));
}

bool all_zero(std::span<const std::byte> bytes) noexcept {
  return bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

/// All of `disk` to `output`, from byte `base` on.
class Conversion {
 public:
  Conversion(const Input& input, const Disk& disk, ImageOutput& output, std::uint64_t base, ConvertObserver& observer)
      : input_(input), disk_(disk), output_(output), base_(base), observer_(observer), buffer_(kAtOnce) {}
  /// Bytes that were data.
  Result<std::uint64_t> run() {
    for (std::uint64_t offset = 0; offset < disk_.size();) {
      const Disk::Piece piece = disk_.piece(offset, kAtOnce);
      auto done = piece.at ? copy(*piece.at, offset, piece.length) : output_.zero(base_ + offset, piece.length);
      if (!done) return failure(std::move(done.error()));
      offset += piece.length;
      if (!observer_.on_converted(Bytes(offset), Bytes(disk_.size())))
        return failure(ErrorKind::io, fmt::format("interrupted after {} of {} bytes", offset, disk_.size()));
    }
    return data_;
  }

 private:
  Result<void> copy(std::uint64_t from, std::uint64_t to, std::uint64_t length) {
    const std::span all = std::span(buffer_).first(length);
    if (auto done = input_.read(from, all); !done) return done;
    for (std::uint64_t at = 0; at < length;) {
      const bool zero = all_zero(all.subspan(at, std::min(kPage, length - at)));
      std::uint64_t end = at;
      while (end < length && all_zero(all.subspan(end, std::min(kPage, length - end))) == zero)
        end += std::min(kPage, length - end);
      const auto piece = all.subspan(at, end - at);
      auto done = zero ? output_.zero(base_ + to + at, piece.size()) : output_.write(base_ + to + at, piece);
      if (!done) return done;
      data_ += zero ? 0 : piece.size();
      at = end;
    }
    return {};
  }

  const Input& input_;
  const Disk& disk_;
  ImageOutput& output_;
  std::uint64_t base_;
  ConvertObserver& observer_;
  std::vector<std::byte> buffer_;
  std::uint64_t data_ = 0;
};

}  // namespace

Result<ConvertResult> convert_image(const ConvertOptions& options, const StoreEnvironment& environment,
                                    ConvertObserver& observer) {
  const bool to_shadow = options.form == ImageForm::shadow;
  auto input = Input::open(options.from, to_shadow ? options.block_shift : std::nullopt, environment);
  if (!input) return failure(std::move(input.error()));
  auto disk = understand(*input, to_shadow ? ImageForm::raw : ImageForm::shadow, options.from);
  if (!disk) return failure(std::move(disk.error()));

  ConvertResult result{.size = Bytes(disk->size()), .needed = Bytes(disk->size()), .block_shift = disk->block_shift()};
  std::optional<ShadowLayout> layout;
  if (to_shadow) {
    result.identity = fresh_identity(environment.random);
    auto planned = ShadowLayout::plan(disk->block_shift().blocks(result.size), disk->block_shift(), result.identity);
    if (!planned) return failure(std::move(planned.error()).within(options.from));
    layout = *planned;
    result.needed = Bytes(layout->size());
  }
  auto output = ImageOutput::create(options.to, result.needed.value(), input->mode(), options.overwrite, environment);
  if (!output) return failure(std::move(output.error()));
  // On a device: no header while what it promises is not all there.
  if (layout)
    if (auto done = (*output)->zero(0, layout->data_offset()); !done) return failure(std::move(done.error()));
  auto data = Conversion(*input, *disk, **output, layout ? layout->place_offset(0) : 0, observer).run();
  if (!data) return failure(std::move(data.error()));
  if (auto done = (*output)->sync(); !done) return failure(std::move(done.error()));
  if (layout)
    if (auto done = (*output)->write(0, encode_header(*layout)); !done) return failure(std::move(done.error()));
  if (auto done = (*output)->finish(); !done) return failure(std::move(done.error()));
  result.data = Bytes(*data);
  return result;
}

}  // namespace rbt::target
