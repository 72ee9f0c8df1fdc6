#!/usr/bin/env bash
# usage: tools/training_pictures.sh DIR
# Lays out the photographs that the bundled weights were trained on, for mtu-train --data photos:DIR: DIR/train and
# DIR/validation. Fetches the packages of Debian 12 that hold them (170 MB, apt-get download, no root needed) into a
# temporary folder, which goes. Licences and authors: docs/weights.md. DIR must not exist.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
[ ! -e "$1" ] || { echo "$1 exists: give a new folder" >&2; exit 2; }
for program in apt-get dpkg-deb; do
  command -v "$program" > /dev/null || { echo "$program is not there: this needs Debian or Ubuntu" >&2; exit 2; }
done

pictures() {
  cat << 'LIST'
package lomiri-wallpapers-16.04
train backgrounds/Bridge_by_Sander_Klootwijk.jpg
train backgrounds/Dragonfly_by_Bolly.jpg
train backgrounds/Picture_0B_by_freespace.jpg
train backgrounds/Picture_1A_by_freespace.jpg
train backgrounds/Wine_by_Jakkub_Mede.jpg
train backgrounds/aitzgorri_by_Aitzol_Berasategi.jpg
train backgrounds/free_by_Peter_Nerlich.jpg
train backgrounds/friends_by_Aitzol_Berasategi.jpg
train backgrounds/greentock_by_Peter_Nerlich.jpg
train backgrounds/life_by_Aitzol_Berasategi.jpg
validation backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg
train backgrounds/seeding_by_Clements_Engelhardt.jpg
train backgrounds/sunset_by_Aitzol_Berasategi.jpg
package lomiri-wallpapers-20.04
train backgrounds/Kleiber_by_Lukas_Baubkus.jpg
package mate-backgrounds
train backgrounds/mate/abstract/Elephants.jpg
train backgrounds/mate/nature/Aqua.jpg
train backgrounds/mate/nature/Blinds.jpg
validation backgrounds/mate/nature/Dune.jpg
train backgrounds/mate/nature/FreshFlower.jpg
train backgrounds/mate/nature/Garden.jpg
train backgrounds/mate/nature/GreenMeadow.jpg
train backgrounds/mate/nature/LadyBird.jpg
train backgrounds/mate/nature/RainDrops.jpg
train backgrounds/mate/nature/Storm.jpg
train backgrounds/mate/nature/TwoWings.jpg
train backgrounds/mate/nature/Wood.jpg
train backgrounds/mate/nature/YellowFlower.jpg
package plasma-workspace-wallpapers
train wallpapers/BytheWater/contents/images/2560x1600.jpg
validation wallpapers/ColdRipple/contents/images/2560x1600.jpg
train wallpapers/ColorfulCups/contents/images/2560x1600.jpg
train wallpapers/EveningGlow/contents/images/2560x1600.jpg
train wallpapers/FallenLeaf/contents/images/2560x1600.jpg
train wallpapers/Grey/contents/images/2560x1600.jpg
train wallpapers/OneStandsOut/contents/images/2560x1600.jpg
train wallpapers/Path/contents/images/2560x1600.jpg
LIST
}

mkdir -p "$(dirname "$1")"
work=$(mktemp -d "$(dirname "$1")/.pictures.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get -q download $(pictures | sed -n 's/^package //p'))
for package in "$work"/*.deb; do
  dpkg-deb -x "$package" "$work/files"
done
mkdir -p "$work/DIR/train" "$work/DIR/validation"
pictures | while read -r split path; do
  [ "$split" = package ] && continue
  name=${path#*/}
  cp "$work/files/usr/share/$path" "$work/DIR/$split/${name//\//_}"
done
mv "$work/DIR" "$1"
echo "$1: $(ls "$1/train" | wc -l) photographs for training, $(ls "$1/validation" | wc -l) for validation"
